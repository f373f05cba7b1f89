"""The step's weights as backend "triton" reads them from a bundle."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from framert.runtime.backends.triton import products, weights  # noqa: E402
from framert.runtime.backends.triton.graph_file import GraphFile  # noqa: E402
from framert.runtime.errors import BackendError  # noqa: E402

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ("samples", "timesteps", "text", "text_mask")


@pytest.fixture(scope="module")
def file(golden_bundle):
    return GraphFile(golden_bundle / "denoiser.onnx")


@pytest.fixture(scope="module")
def checkpoint():
    from safetensors.torch import load_file

    return load_file(GOLDEN / "checkpoint/transformer/diffusion_pytorch_model.safetensors")


def test_weights_are_the_checkpoints(file, checkpoint):
    read = weights.read(file, 3, "fp32", CPU, "reference")
    assert len(read.layers) == 3
    for index, layer in enumerate(read.layers):
        own, feed = f"layers.{index}.attention", f"layers.{index}.feed_forward"
        qkv = torch.cat([checkpoint[f"{own}.{name}.weight"] for name in ("wq", "wk", "wv")])
        gate_up = torch.cat([checkpoint[f"{feed}.{name}.weight"] for name in ("w1", "w3")])
        for actual, expected in (
            (layer.qkv.weight, qkv),
            (layer.gate_up.weight, gate_up),
            (layer.wo.weight, checkpoint[f"{own}.wo.weight"]),
            (layer.w2.weight, checkpoint[f"{feed}.w2.weight"]),
            (layer.k_bias, checkpoint[f"{own}.k_norm.bias"]),
            (layer.gate, checkpoint[f"{own}.gate"].tanh()),
        ):
            torch.testing.assert_close(actual, expected.float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(read.embed, checkpoint["x_embedder.weight"].float(), rtol=0, atol=0)
    assert (read.softcap, read.quantize) == (30.0, None)
    assert read.scale == pytest.approx(18**-0.5)
    assert (read.norm_eps, read.qk_eps, read.final_eps) == pytest.approx((1e-5, 1e-5, 1e-6))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_weights_are_near_and_scaled_per_output(kind, file):
    exact, quantized = (weights.read(file, 3, name, CPU, "reference") for name in ("fp32", kind))
    for one, other in zip(exact.layers, quantized.layers, strict=True):
        for name in ("qkv", "wo", "gate_up", "w2"):
            full, packed = getattr(one, name).weight, getattr(other, name)
            assert packed.weight.dtype == (torch.int8 if kind == "int8" else torch.float8_e4m3fn)
            assert packed.scale.shape == (len(full),)
            error = (packed.weight.float() * packed.scale[:, None] - full).abs().amax(1)
            step = packed.scale * (0.5001 if kind == "int8" else 16.001)  # half a step at the largest magnitude
            assert (error <= step).all()


def test_fp16_factors_cancel_in_the_norms(file):
    """rms_norm(f y, f^2 eps) is rms_norm(y, eps), for wo with f and for w2 after w3 with f twice."""
    plain, folded = (weights.read(file, 3, name, CPU, "reference") for name in ("fp32", "fp16"))
    f = weights.FP16_FACTOR
    for one, other in zip(plain.layers, folded.layers, strict=True):
        half = len(one.gate_up.weight) // 2
        for name, rows, factor in (("qkv", slice(None), 1), ("wo", slice(None), f), ("w2", slice(None), f),
                                   ("gate_up", slice(0, half), 1), ("gate_up", slice(half, None), f)):  # fmt: skip
            expected = (getattr(one, name).weight[rows] * factor).half()
            torch.testing.assert_close(getattr(other, name).weight[rows], expected, rtol=0, atol=0)
        assert other.wo_eps == pytest.approx(one.wo_eps * f**2)
        assert other.w2_eps == pytest.approx(one.w2_eps * f**4)


def test_fp16_survives_what_overflows_it(golden_bundle, monkeypatch):
    """Values of 1e5 behind w3, which the norm after w2 takes out again: real models of this lineage have them."""
    from framert.runtime.backends.triton.backend import TritonBackend
    from framert.runtime.bundle import Bundle
    from framert.runtime.components import Components
    from framert.runtime.velocity import velocity

    plain = products.Reader.linear
    monkeypatch.setattr(
        products.Reader, "linear", lambda self, name: plain(self, name) * (3e4 if name.endswith("w3") else 1)
    )
    vectors = np.load(GOLDEN / "transformer_one_frame.npz")

    def run(precision):
        bundle = Bundle.open(golden_bundle)
        backend = TritonBackend(bundle, impl="reference", precision=precision)
        return velocity(backend, Components(bundle, backend), bundle.manifest, *(vectors[n] for n in NAMES))

    exact, folded = run("fp32"), run("fp16")
    assert np.linalg.norm(folded - exact) < 0.01 * np.linalg.norm(exact)
    monkeypatch.setattr(weights, "FP16_FACTOR", 1.0)
    assert not np.isfinite(run("fp16")).all()


def test_a_graph_of_another_kind_is_refused(golden_bundle):
    with pytest.raises(BackendError, match="no OneDiffusion denoiser in fp32"):
        weights.read(GraphFile(golden_bundle / "conditioner.onnx"), 3, "bf16", CPU, "reference")


def test_a_missing_weight_is_named(file):
    with pytest.raises(BackendError, match=r"no weight layers\.3\.attention\.wq\.weight"):
        weights.read(file, 4, "bf16", CPU, "reference")


def test_every_tensor_lies_on_the_device_and_is_contiguous(file):
    read = weights.read(file, 3, "bf16", CPU, "reference")
    tensors = [getattr(layer, item.name) for layer in read.layers for item in fields(layer)]
    tensors += [getattr(read, item.name) for item in fields(read)]
    assert all(each.is_contiguous() for each in tensors if isinstance(each, torch.Tensor))
