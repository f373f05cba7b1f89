"""Sizes for kernels, from the denoiser's graph: as exported, packed to four bits, and not a denoiser at all."""

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from framert.export.model_shape import _ffn, _norm_eps, model_shape  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.runtime.bundle import Bundle  # noqa: E402
from framert.runtime.errors import BundleError  # noqa: E402

W1 = "layers.0.feed_forward.w1.weight"


def graph(nodes=(), **initializers):
    """A graph that holds the named shapes."""
    tensors = [
        helper.make_tensor(name.replace("__", "."), TensorProto.UINT8, shape, bytes(shape[0] * shape[1]), raw=True)
        for name, shape in initializers.items()
    ]
    return helper.make_graph(list(nodes), "denoiser", [], [], tensors)


def test_a_bundle_has_a_shape(golden_bundle):
    shape = model_shape(Bundle.open(golden_bundle))
    assert shape == model_shape(golden_bundle)
    assert isinstance(shape, ModelShape)
    assert shape.heads * shape.head_dim == shape.hidden
    assert shape.name == "checkpoint"


@pytest.mark.parametrize("dims", [(24, 64), (64, 24)])
def test_the_gate_lies_either_way(dims):
    assert _ffn(graph(**{W1.replace(".", "__"): dims}), 24, Path("x.onnx")) == 64


def test_a_gate_whose_input_was_widened_has_its_columns():
    found = graph(
        layers__0__feed_forward__w1__weight_values=(320, 768), layers__0__feed_forward__w1__weight_scale=(5, 768)
    )
    assert _ffn(found, 288, Path("x.onnx")) == 768


def test_a_packed_gate_is_known_by_its_node():
    node = helper.make_node("MatMulNBits", ["a", f"{W1}_packed", "scale"], ["y"], K=24, N=64, bits=4, block_size=32)
    found = graph([node], layers__0__feed_forward__w1__weight_packed=(64, 16))
    assert _ffn(found, 24, Path("x.onnx")) == 64


def test_epsilon_is_the_number_that_was_exported():
    node = helper.make_node("RMSNormalization", ["x", "w"], ["y"], epsilon=1e-5)
    assert _norm_eps(graph([node]), Path("x.onnx")) == 1e-5


@pytest.mark.parametrize(
    "read", [lambda found: _ffn(found, 24, Path("x.onnx")), lambda f: _norm_eps(f, Path("x.onnx"))]
)
def test_another_graph_is_refused(read):
    with pytest.raises(BundleError, match=r"x\.onnx has no .*; export the checkpoint again"):
        read(graph())
