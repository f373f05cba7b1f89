"""The ONNX Runtime backend: state in buffers of its own, failures that change nothing, refusals."""

import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import framert
from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError, ConfigError

REQUEST = framert.Request(task="text_to_image", prompt="a", steps=3, guidance=4.0, size=(32, 16), seed=1)


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


@pytest.fixture
def denoiser(pipe):
    """A denoiser in the middle of a request, with the arguments of its last step."""
    engine = pipe.engine()
    found = engine._pack._denoiser
    inner, calls = found.step, []
    found.step = lambda row, update: (calls.append((row, update)), inner(row, update))
    engine.submit(REQUEST)
    engine.step()
    found.step = inner
    return found, *calls[-1]


def test_what_was_read_before_a_step_stays(denoiser):
    found, row, update = denoiser
    read = [*found.state(), found.velocity()]
    kept = [array.copy() for array in read]
    for _ in range(3):  # both buffers are written again
        found.step(row, update)
    for array, copy in zip(read, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert not np.array_equal(found.state()[0], kept[0])


def test_a_step_never_writes_what_it_was_given(pipe, denoiser):
    found, row, update = denoiser
    latents, history = found.state()
    given = latents.copy(), history.copy()
    found.take(*given)
    found.step(row, update)
    np.testing.assert_array_equal(given[0], latents)
    np.testing.assert_array_equal(given[1], history)


def test_a_failed_step_changes_nothing_and_the_next_one_works(denoiser):
    found, row, update = denoiser
    before = found.state()
    with pytest.raises(BackendError, match="denoiser"):
        found.step(np.zeros((1, 1), np.int32), update)
    for was, now in zip(before, found.state(), strict=True):
        np.testing.assert_array_equal(was, now)
    found.step(row, update)
    after = found.state()[0].copy()
    found.take(*before)
    found.step(row, update)
    np.testing.assert_array_equal(found.state()[0], after)


def test_arenas_keep_their_contents_when_they_grow(pipe):
    found = pipe._backend.denoiser()
    model = pipe.manifest.model
    text = np.random.default_rng(0).standard_normal((model.depth, 3, model.kv_heads, model.head_dim), np.float32)
    found.reserve(text=4, rows=1)
    found.write_text(1, text, 2 * text)
    found.reserve(text=9, rows=2)
    found.reserve(text=5, rows=1)  # never shrinks
    assert found.text["text_k"].shape[1] == 9
    np.testing.assert_array_equal(found.text["text_k"][:, 1:4], text)
    np.testing.assert_array_equal(found.text["text_v"][:, 1:4], 2 * text)


def test_refusals(golden_bundle, monkeypatch):
    bundle = Bundle.open(golden_bundle, check_files=False)
    with pytest.raises(BackendError, match="precision it was exported in"):
        OnnxRuntimeBackend(bundle, threads=None, precision="bf16")
    for threads in (0, 5000, True, "2"):
        with pytest.raises(ConfigError, match="threads is"):
            OnnxRuntimeBackend(bundle, threads=threads)
    other = replace(bundle, manifest=replace(bundle.manifest, target={"kind": "tensorrt"}))
    with pytest.raises(BackendError, match="built for 'tensorrt'"):
        OnnxRuntimeBackend(other, threads=None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'framert\[cpu\]'"):
        OnnxRuntimeBackend(bundle, threads=None)


@pytest.mark.parametrize(
    ("precision", "low_memory", "packed"), [("float32", False, True), ("float32", True, False), ("int4", True, True)]
)
def test_low_memory_packs_weights_of_4_bits_alone(golden_bundle, precision, low_memory, packed):
    """Unpacked ones lie in the mapped file; but of 4 bits, each product would unpack its matrix to fp32 every time."""
    bundle = Bundle.open(golden_bundle, check_files=False)
    graphs = bundle.manifest.graphs | {"denoiser": replace(bundle.manifest.graphs["denoiser"], precision=precision)}
    bundle = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    options = OnnxRuntimeBackend(bundle, threads=1, low_memory=low_memory).options("denoiser")
    try:
        found = options.get_session_config_entry("session.disable_prepacking")
    except RuntimeError:  # onnxruntime's way to say that it was not set
        found = "0"
    assert found == ("0" if packed else "1")
