"""The attention body that TensorRT parses, in ONNX Runtime, against the reference and the bundle's own Loop."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from framert.export.frame_attention import function
from framert.export.tensorrt.body import swap
from framert.kernels.frame_attention import reference

NAMES = ("query", "key", "value", "q_range", "kv_range", "text_k", "text_v", "text_range", "gate")
Arrays = dict[str, np.ndarray[Any, Any]]
RAGGED = [
    ((1,), (1,), (1,)),
    ((7, 33, 2), (7, 33, 2), (5, 1, 12)),
    ((4, 6), (9, 6), (3, 2)),
    ((5, 0, 3), (5, 0, 3), (2, 2, 2)),
    ((5, 3), (5, 3), (0, 4)),
    ((5, 3), (0, 3), (2, 0)),
    ((3, 0), (3, 0), (2, 0)),
]


def model(heads: int, kv_heads: int, width: int, softcap: float, layers: int = 2) -> onnx.ModelProto:
    """Layers of FrameAttention, each on the output of the one before, with the Loop as their local function."""
    kv, ranges, query = ["m", kv_heads, width], ["sequences", 2], ["n", heads, width]
    shapes = [query, kv, kv, ranges, ranges, ["c", *kv[1:]], ["c", *kv[1:]], ranges, [heads]]
    inputs = [
        helper.make_tensor_value_info(
            name, onnx.TensorProto.INT32 if "range" in name else onnx.TensorProto.FLOAT, shape
        )
        for name, shape in zip(NAMES, shapes, strict=True)
    ]
    attributes = {"softcap": softcap, "scale": width**-0.5, "plugin_namespace": "framert"}
    ends = ["query", *(f"x{layer}" for layer in range(1, layers)), "output"]
    nodes = [
        helper.make_node("FrameAttention", [begin, *NAMES[1:]], [end], name=end, domain="framert", **attributes)
        for begin, end in pairwise(ends)
    ]
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, query)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("framert", 1)]
    graph = helper.make_graph(nodes, "layers", inputs, [output])
    return helper.make_model(graph, functions=[function(softcap)], opset_imports=opsets, ir_version=11)


def swapped(heads: int, kv_heads: int, width: int, softcap: float) -> bytes:
    proto = model(heads, kv_heads, width, softcap)
    assert swap(proto, heads=heads, kv_heads=kv_heads, head_dim=width)
    onnx.checker.check_model(proto)
    serialized: bytes = proto.SerializeToString()
    return serialized


def ranges(lengths: tuple[int, ...]) -> np.ndarray[Any, Any]:
    begins = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return np.stack((begins, lengths), axis=1).astype(np.int32)


def inputs(
    q: tuple[int, ...], kv: tuple[int, ...], text: tuple[int, ...], heads: int, kv_heads: int, width: int
) -> Arrays:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "query": 4 * normal(sum(q), heads, width),
        "key": 4 * normal(sum(kv), kv_heads, width),
        "value": normal(sum(kv), kv_heads, width),
        "q_range": ranges(q),
        "kv_range": ranges(kv),
        "text_k": normal(sum(text) + 3, kv_heads, width),
        "text_v": normal(sum(text) + 3, kv_heads, width),
        "text_range": ranges(text) + np.array([[1, 0]], np.int32),
        "gate": normal(heads),
    }


def windows(arrays: Arrays, slack: int = 0) -> Arrays:
    longest = max(arrays["q_range"][:, 1].max(), arrays["kv_range"][:, 1].max(), 1) + slack
    text = max(arrays["text_range"][:, 1].max(), 1) + slack
    return {"window": np.arange(longest, dtype=np.int32), "text_window": np.arange(text, dtype=np.int32)}


def expected(arrays: Arrays, softcap: float, layers: int = 2) -> np.ndarray[Any, Any]:
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    scale = arrays["query"].shape[-1] ** -0.5
    for _ in range(layers):
        tensors[0] = reference.frame_attention(*tensors, softcap=softcap, scale=scale)
    return tensors[0].numpy()


def relative(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("slack", [0, 5])
@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize("heads", [(8, 2, 18), (6, 6, 12), (4, 1, 24)], ids=str)
@pytest.mark.parametrize(("q", "kv", "text"), RAGGED, ids=str)
def test_padded_body_equals_reference(
    q: tuple[int, ...],
    kv: tuple[int, ...],
    text: tuple[int, ...],
    heads: tuple[int, int, int],
    softcap: float,
    slack: int,
    open_session: Callable[[bytes], Any],
) -> None:
    arrays = inputs(q, kv, text, *heads)
    (found,) = open_session(swapped(*heads, softcap)).run(None, arrays | windows(arrays, slack))
    exact = expected(arrays, softcap)
    assert found.shape == exact.shape
    assert relative(found, exact) <= 2e-6


@pytest.mark.parametrize("sick", [0, 1, 2])
def test_a_neighbours_nan_stays_with_it(sick: int, open_session: Callable[[bytes], Any]) -> None:
    """Before or behind it, and where the others are padded or have no text."""
    session = open_session(swapped(8, 2, 18, 30.0))
    lengths, texts = (4, 9, 6, 0), (4, 0, 3, 1)
    arrays = inputs(lengths, lengths, texts, 8, 2, 18)
    others = np.ones(sum(lengths), bool)
    (begin, count), (text, text_count) = arrays["q_range"][sick], arrays["text_range"][sick]
    others[begin : begin + count] = False
    clean = session.run(None, arrays | windows(arrays, 2))[0][others]
    for name in ("query", "key", "value"):
        arrays[name][begin : begin + count] = np.nan
    for name in ("text_k", "text_v"):
        arrays[name][text : text + text_count] = np.nan
    np.testing.assert_array_equal(session.run(None, arrays | windows(arrays, 2))[0][others], clean)


def test_a_graph_without_the_node_is_left_alone() -> None:
    proto = model(4, 2, 12, 30.0)
    del proto.graph.node[:]
    before = proto.SerializeToString()
    assert not swap(proto, heads=4, kv_heads=2, head_dim=12)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("slack", [0, 5])
@pytest.mark.parametrize(("image", "text"), [((1,), (1,)), ((7, 33, 2), (5, 0, 12)), ((4, 0, 6), (3, 0, 0))], ids=str)
def test_layers_without_text_over_ranges_of_their_own(
    image: tuple[int, ...], text: tuple[int, ...], slack: int, open_session: Callable[[bytes], Any]
) -> None:
    """Joint attention, image to both, and image alone; tokens of the joint order behind all ranges are nobody's."""
    heads, width = 3, 8
    rng = np.random.default_rng(1)
    joint = tuple(map(sum, zip(image, text, strict=True)))
    arrays: Arrays = {
        "both": rng.standard_normal((sum(joint) + 4, heads, width)).astype(np.float32),
        "image": rng.standard_normal((sum(image), heads, width)).astype(np.float32),
        "both_range": ranges(joint),
        "image_range": ranges(image),
    }
    layers = {"joint": ("both", "both"), "joint_again": ("both", "both"), "mixed": ("image", "both"),
              "own": ("image", "image")}  # fmt: skip
    nodes, exact = [], []
    for name, (query, key) in layers.items():
        inputs = [query, key, key, f"{query}_range", f"{key}_range"]
        nodes.append(helper.make_node("FrameAttention", inputs, [name], domain="framert", softcap=0.0, scale=0.3))
        tensors = [torch.from_numpy(arrays[one]) for one in inputs]
        exact.append(reference.frame_attention(*(t.double() if t.is_floating_point() else t for t in tensors),
                                               softcap=0.0, scale=0.3).numpy())  # fmt: skip
    kinds = {"f": onnx.TensorProto.FLOAT, "i": onnx.TensorProto.INT32}
    given = [helper.make_tensor_value_info(name, kinds[array.dtype.kind], array.shape)
             for name, array in arrays.items()]  # fmt: skip
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, heads, width]) for name in layers]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("framert", 1)]
    proto = helper.make_model(helper.make_graph(nodes, "layers", given, made), opset_imports=opsets, ir_version=11)
    assert swap(proto, heads=heads, kv_heads=heads, head_dim=width) == ("window",)
    onnx.checker.check_model(proto)
    tables = [node for node in proto.graph.node if node.name.endswith("/flat")]
    assert len(tables) == 3  # once for each pair of ranges
    window = np.arange(max(joint) + slack, dtype=np.int32)
    for found, value in zip(open_session(proto.SerializeToString()).run(None, arrays | {"window": window}), exact,
                            strict=True):  # fmt: skip
        assert found.shape == value.shape
        rows = sum(joint) if len(value) > sum(image) else sum(image)
        assert relative(found[:rows], value[:rows]) <= 2e-6
        assert np.isfinite(found).all()
