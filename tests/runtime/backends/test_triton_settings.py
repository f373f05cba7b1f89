"""Backend "triton": token buckets, and options that cannot be."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import framert  # noqa: E402
from framert.runtime.backends import create  # noqa: E402
from framert.runtime.backends.buckets import capacity, text_bucket, token_bucket  # noqa: E402
from framert.runtime.backends.triton import settings  # noqa: E402
from framert.runtime.bundle import Bundle  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError  # noqa: E402


def test_buckets_hold_their_packs_with_little_padding():
    previous = 0
    for tokens in range(1, 20_000):
        bucket = token_bucket(tokens)
        assert bucket >= max(tokens, previous)
        assert token_bucket(bucket) == bucket
        if tokens > 256:
            assert bucket <= 1.06 * tokens
        previous = bucket
    assert len({token_bucket(tokens) for tokens in range(1, 16_385)}) < 120


@pytest.mark.parametrize("power", range(6, 17))
def test_powers_of_two_are_not_padded(power):
    assert token_bucket(2**power) == 2**power


def test_buckets_of_text_are_few():
    previous = 0
    for words in range(10_000):
        bucket = text_bucket(words)
        assert bucket >= max(words, previous, 64)
        assert text_bucket(bucket) == bucket
        assert words <= 512 or bucket <= 1.25 * words
        previous = bucket
    assert len({text_bucket(words) for words in range(8193)}) == 24


@pytest.mark.parametrize(("count", "expected"), [(0, 64), (64, 64), (65, 256), (257, 1024)])
def test_capacities_quadruple(count, expected):
    assert capacity(count, 64) == expected


@pytest.mark.parametrize("impl", [None, "auto", "triton"])
def test_a_machine_without_cuda_is_told_so(impl, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU.*impl='reference' runs it on the CPU") as caught:
        settings.choose(impl, None)
    assert "\n" not in str(caught.value)


def test_auto_does_not_mean_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        settings.choose("auto", None)
    assert settings.choose("triton", None).device.type == "cpu"


def pretend(monkeypatch, name, capability):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_an_old_device_is_refused(monkeypatch):
    pretend(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(BackendError, match=r"needs compute capability 8\.0 or newer, Tesla T4 has 7\.5"):
        settings.choose(None, "fp32")


def test_the_interpreter_beside_a_device_is_named(monkeypatch):
    pretend(monkeypatch, "A100", (8, 0))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="TRITON_INTERPRET=1 keeps Triton from this one; unset it"):
        settings.choose(None, None)


def test_fp8_needs_a_device_that_has_it(monkeypatch):
    pretend(monkeypatch, "Orin", (8, 7))
    with pytest.raises(BackendError, match=r"'fp8' needs compute capability 8\.9 or newer, Orin has 8\.7"):
        settings.choose("auto", "fp8")
    assert settings.choose("auto", "int8").device.type == "cuda"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"impl": "cuda"}, ConfigError, "impl is 'cuda'"),
        ({"impl": "reference", "precision": "fp4"}, ConfigError, "precision is 'fp4'"),
        ({"impl": "reference", "threads": 2}, ConfigError, "threads is 2"),
        ({"impl": "reference", "low_memory": True}, ConfigError, "low_memory is True"),
        ({"backend": "onnxruntime", "impl": "auto"}, ConfigError, "impl is 'auto'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused(options, error, says, golden_bundle):
    with pytest.raises(error, match=says):
        framert.load(golden_bundle, **{"backend": "triton"} | options)


def test_bundles_already_quantized_are_refused(golden_bundle):
    opened = Bundle.open(golden_bundle)
    graphs = dict(opened.manifest.graphs)
    graphs["denoiser"] = replace(graphs["denoiser"], precision="int8")
    other = replace(opened, manifest=replace(opened.manifest, graphs=graphs))
    with pytest.raises(BackendError, match="has its denoiser in int8"):
        create("triton", other, threads=None, impl="reference")


def test_only_the_conditioners_products_stay_on_the_device(golden_bundle):
    backend = create("triton", Bundle.open(golden_bundle), threads=None, impl="reference")
    hidden, levels = np.ones((3, 64), np.float32), np.ones(2, np.float32)
    kept = backend.run("conditioner", {"hidden_states": hidden, "noise_level": levels})
    assert {type(array) for array in kept.values()} == {torch.Tensor}
    read = backend.run("vae_decoder", {"latents": np.ones((1, 16, 2, 2), np.float32)})
    assert {(type(array), array.dtype.name) for array in read.values()} == {(np.ndarray, "float32")}


def test_bundles_for_another_target_are_refused(golden_bundle):
    opened = Bundle.open(golden_bundle)
    other = replace(opened, manifest=replace(opened.manifest, target={"kind": "tensorrt"}))
    with pytest.raises(BackendError, match="is built for 'tensorrt'"):
        create("triton", other, threads=None, impl="reference")
