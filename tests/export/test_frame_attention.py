"""The local function that runs FrameAttention outside TensorRT, against the reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from framert.export.frame_attention import function
from framert.kernels.frame_attention import reference

NAMES = ("query", "key", "value", "q_range", "kv_range", "text_k", "text_v", "text_range", "gate")
FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
Arrays = dict[str, np.ndarray[Any, Any]]


def model(heads: int, kv_heads: int, width: int, softcap: float, *, text: bool = True) -> bytes:
    """One FrameAttention node with its local function."""
    names = NAMES if text else NAMES[:5]
    kv, ranges, query = ["m", kv_heads, width], ["sequences", 2], ["n", heads, width]
    shapes = [query, kv, kv, ranges, ranges, ["c", *kv[1:]], ["c", *kv[1:]], ranges, [heads]]
    inputs = [
        helper.make_tensor_value_info(
            name, onnx.TensorProto.INT32 if "range" in name else onnx.TensorProto.FLOAT, shape
        )
        for name, shape in zip(names, shapes, strict=False)
    ]
    output = helper.make_tensor_value_info("output", FLOAT, query)
    attributes = {"softcap": softcap, "scale": width**-0.5, "plugin_namespace": "framert"}
    node = helper.make_node("FrameAttention", names, ["output"], domain="framert", **attributes)
    graph = helper.make_graph([node], "one", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("framert", 1)]
    proto = helper.make_model(graph, functions=[function(softcap, text=text)], opset_imports=opsets, ir_version=11)
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

    capacity = sum(text) + 3
    return {
        "query": 4 * normal(sum(q), heads, width),
        "key": 4 * normal(sum(kv), kv_heads, width),
        "value": normal(sum(kv), kv_heads, width),
        "q_range": ranges(q),
        "kv_range": ranges(kv),
        "text_k": normal(capacity, kv_heads, width),
        "text_v": normal(capacity, kv_heads, width),
        "text_range": ranges(text) + np.array([[1, 0]], np.int32),
        "gate": normal(heads),
    }


def expected(arrays: Arrays, softcap: float) -> np.ndarray[Any, Any]:
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    scale = arrays["query"].shape[-1] ** -0.5
    return reference.frame_attention(*tensors, softcap=softcap, scale=scale).numpy()


@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize("heads", [(8, 2, 18), (6, 6, 12), (4, 1, 24)], ids=str)
@pytest.mark.parametrize(
    ("q", "kv", "text"),
    [
        ((1,), (1,), (1,)),
        ((7, 33, 2), (7, 33, 2), (5, 1, 12)),
        ((4, 6), (9, 6), (3, 2)),
        ((5, 0, 3), (5, 0, 3), (2, 2, 2)),
        ((5, 3), (5, 3), (0, 4)),
        ((5, 3), (0, 3), (2, 0)),
        ((0, 3), (0, 3), (0, 0)),
    ],
    ids=str,
)
def test_function_equals_reference(
    q: tuple[int, ...],
    kv: tuple[int, ...],
    text: tuple[int, ...],
    heads: tuple[int, int, int],
    softcap: float,
    open_session: Callable[[bytes], Any],
) -> None:
    arrays = inputs(q, kv, text, *heads)
    (found,) = open_session(model(*heads, softcap)).run(None, arrays)
    exact = expected(arrays, softcap)
    assert found.shape == exact.shape
    assert np.linalg.norm(found - exact) <= 2e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize(
    ("q", "kv"), [((1,), (1,)), ((7, 33, 2), (7, 33, 2)), ((4, 0, 6), (9, 3, 1)), ((0, 3), (2, 0))], ids=str
)
def test_without_text_the_function_is_self_attention(
    q: tuple[int, ...], kv: tuple[int, ...], softcap: float, open_session: Callable[[bytes], Any]
) -> None:
    arrays = dict(list(inputs(q, kv, (0,) * len(q), 6, 3, 12).items())[:5])
    (found,) = open_session(model(6, 3, 12, softcap, text=False)).run(None, arrays)
    exact = expected(arrays, softcap)
    assert found.shape == exact.shape
    assert np.linalg.norm(found - exact) <= 2e-6 * np.linalg.norm(exact)


def test_a_sequence_has_the_same_bits_alone_and_packed(open_session: Callable[[bytes], Any]) -> None:
    session = open_session(model(8, 2, 18, 30.0))
    lengths, texts = (31, 64, 5, 77), (9, 20, 1, 3)
    arrays = inputs(lengths, lengths, texts, 8, 2, 18)
    (packed,) = session.run(None, arrays)
    for (begin, length), (text, count) in zip(arrays["q_range"], arrays["text_range"], strict=True):
        own = {
            name: arrays[name][begin : begin + length]
            if name in {"query", "key", "value"}
            else arrays[name][text : text + count]
            if name in {"text_k", "text_v"}
            else arrays[name]
            for name in NAMES
        }
        own |= {"q_range": ranges((length,)), "kv_range": ranges((length,)), "text_range": ranges((count,))}
        np.testing.assert_array_equal(session.run(None, own)[0], packed[begin : begin + length])


def test_a_neighbours_nan_stays_with_it(open_session: Callable[[bytes], Any]) -> None:
    session = open_session(model(8, 2, 18, 30.0))
    arrays = inputs((6, 9), (6, 9), (4, 0), 8, 2, 18)
    clean = session.run(None, arrays)[0][6:]
    for name, rows in (("query", 6), ("key", 6), ("value", 6), ("text_k", 5), ("text_v", 5)):
        arrays[name][:rows] = np.nan
    np.testing.assert_array_equal(session.run(None, arrays)[0][6:], clean)


def test_bundle_holds_nodes_with_the_plugin_attribute_and_the_function(golden_bundle: Path) -> None:
    denoiser = onnx.load(golden_bundle / "denoiser.onnx")
    nodes = [node for node in denoiser.graph.node if node.domain == "framert"]
    assert [node.op_type for node in nodes] == ["FrameAttention"] * 3  # one per layer
    for node in nodes:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes == {
            "softcap": 30.0,
            "scale": pytest.approx(18**-0.5, rel=1e-6),
            "plugin_namespace": b"framert",
        }
        assert len(node.input) == 9
    (body,) = denoiser.functions
    assert (body.domain, body.name) == ("framert", "FrameAttention")
    assert body.SerializeToString() == function(30.0).SerializeToString()
    (loop,) = [node for node in body.node if node.op_type == "Loop"]
    inner = [node.op_type for node in loop.attribute[0].g.node]
    assert (inner.count("MatMul"), inner.count("Softmax"), inner.count("Tanh")) == (4, 2, 1)
    assert all(node.domain == "" for node in (*body.node, *loop.attribute[0].g.node))
