"""Autoencoder and conditioner with weights stored in fp16: half the file, on every backend what fp32 gives but for the
rounding of the weights."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from framert.export import pipeline
from framert.export.fidelity import relative_error
from framert.export.quantize.stored_half import SMALL, store_half
from framert.export.weights import Weight
from framert.runtime import backends
from framert.runtime.bundle import Bundle
from framert.runtime.errors import ConfigError

HALF = {"vae": "fp16", "conditioner": "fp16"}
ROUNDING = 2.0**-11  # of fp16, relative


def model(side: int) -> tuple[ir.Graph, dict[str, Weight]]:
    """x @ w + b, with a weight of side x side."""
    values = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    x, w, b = (
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, shape in (("x", [2, side]), ("w", [side, side]), ("b", [side]))
    )
    product = ir.node("MatMul", [x, w])
    added = ir.node("Add", [product.outputs[0], b])
    graph = ir.Graph([x], [added.outputs[0]], nodes=[product, added], opset_imports={"": 23})
    return graph, {"w": Weight((side, side), lambda: values), "b": Weight((side,), lambda: values[0])}


def test_large_weights_are_stored_in_half_and_widened():
    graph, weights = model(side=32)
    made = store_half(graph, weights)
    assert {name: weight.type for name, weight in made.items()} == {
        "b": onnx.TensorProto.FLOAT, "w_half": onnx.TensorProto.FLOAT16,
    }  # fmt: skip
    assert [node.op_type for node in graph] == ["Cast", "MatMul", "Add"]
    np.testing.assert_array_equal(made["w_half"].read(), weights["w"].read().astype(np.float16))


def test_small_weights_stay():
    graph, weights = model(side=int(SMALL**0.5) - 1)
    assert store_half(graph, weights) == weights
    assert [node.op_type for node in graph] == ["MatMul", "Add"]


@pytest.mark.parametrize("largest", [70000.0, np.inf, np.nan])
def test_what_fp16_does_not_hold_is_refused(largest):
    graph, weights = model(side=32)
    weights["w"] = Weight((32, 32), lambda: np.full((32, 32), largest, np.float32))
    with pytest.raises(ConfigError, match=r"the weight w has values up to .*, which fp16 does not hold; leave"):
        store_half(graph, weights)["w_half"].read()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_of_half_the_size_gives_what_fp32_gives(backend, golden_bundle, tmp_path, half_bundle):
    pytest.importorskip(backend)
    fp32, half = Bundle.open(golden_bundle), Bundle.open(half_bundle)
    precisions = {name: graph.precision for name, graph in half.manifest.graphs.items()}
    assert precisions == {
        "text_encoder": "float32", "vae_encoder": "float16", "conditioner": "float16", "denoiser": "float32",
        "vae_decoder": "float16",
    }  # fmt: skip
    random = np.random.default_rng(0)
    spec = fp32.manifest.model
    feeds = {
        "vae_encoder": {"pixels": random.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)},
        "conditioner": {
            "hidden_states": random.standard_normal((9, spec.text_width)).astype(np.float32),
            "noise_level": np.array([900, 100], np.float32),
        },
        "vae_decoder": {"latents": random.standard_normal((1, spec.latent_channels, 8, 8)).astype(np.float32)},
    }
    sides = [backends.create(backend, bundle, threads=1) for bundle in (fp32, half)]
    for graph, given in feeds.items():
        size = [sum(bundle.manifest.files[name].size for name in bundle.manifest.graphs[graph].files)
                for bundle in (fp32, half)]  # fmt: skip
        assert 0.45 < size[1] / size[0] < 0.75  # the graph itself is no smaller, and this model's weights are few
        exact, found = (side.run(graph, given) for side in sides)
        for name in exact:
            # a sum of rounded terms is off by less than each of them; a dozen layers follow each other
            assert 1e-6 < relative_error(found[name], exact[name]) < 8 * ROUNDING, (graph, name)


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory):
    from pathlib import Path

    checkpoint = Path(__file__).parents[1] / "golden" / "checkpoint"
    folder = tmp_path_factory.mktemp("half")
    return pipeline.export(checkpoint, folder / "half.bundle", precision=HALF, check=False, progress=False)
