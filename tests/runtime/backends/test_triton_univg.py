"""UniVG and Stable Diffusion 3 through an engine on backend "triton", on the CPU by the references of its kernels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("diffusers")

import framert  # noqa: E402
from framert.runtime.backends import create  # noqa: E402
from framert.runtime.backends.triton import joint_attention  # noqa: E402
from framert.runtime.bundle import Bundle  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError  # noqa: E402

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
HOLE = np.zeros((64, 64), bool)
HOLE[8:30, 20:41] = True
# together at most 64 image tokens and 64 text tokens, so that they share a bucket with each of them alone
REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", steps=3, size=(48, 32), seed=1, guidance=3.0),
    framert.Request(task="edit", images=[PICTURE], prompt="make it red", steps=3, size=(32, 32), seed=2, solver="heun"),
    framert.Request(
        task="inpaint", images=[PICTURE], hole=HOLE, prompt="a cube", steps=4, size=(32, 32), seed=3,
        image_guidance=1.0, solver="dpmpp_2m",
    ),
    framert.Request(task="segment", images=[PICTURE], prompt="the ball", steps=2, size=(32, 32), seed=4, guidance=1.0),
    framert.Request(
        task="identity", images=[PICTURE, PICTURE.rotate(90)], prompt="a cube", captions=["red", ""], steps=2,
        size=(16, 16), seed=5,
    ),
]  # fmt: skip


def relative(actual, exact):
    return float(np.linalg.norm(np.asarray(actual, np.float64) - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def loaded(univg_bundle):
    """Return a pipeline on the reference of a precision, loaded once."""
    made = {}

    def load(precision):
        if precision not in made:
            made[precision] = framert.load(univg_bundle, backend="triton", impl="reference", precision=precision)
        return made[precision]

    return load


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
def test_packed_equals_alone_bit_for_bit(precision, loaded):
    pipe = loaded(precision)
    alone = [pipe.engine().submit(request).result() for request in REQUESTS]
    engine = pipe.engine()
    order = (3, 0, 4, 1, 2)
    tickets = [engine.submit(REQUESTS[index]) for index in order]
    while engine.step():
        pass
    for index, ticket in zip(order, tickets, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, alone[index].latents)
        np.testing.assert_array_equal(ticket.result().pixels, alone[index].pixels)
    keys = engine._pack._denoiser._steps
    assert {(key.tokens, key.words) for key in keys} == {(64, 64)}


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_latents_and_pictures_are_onnxruntimes(index, loaded, univg_bundle):
    pytest.importorskip("onnxruntime")
    result, exact = (
        pipe.engine().submit(REQUESTS[index]).result() for pipe in (loaded("fp32"), framert.load(univg_bundle))
    )
    assert relative(result.latents, exact.latents) <= 1e-4
    np.testing.assert_allclose(result.pixels, exact.pixels, atol=1e-4)


def test_stable_diffusion_3_is_onnxruntimes(sd3_bundle):
    """Three text encoders, padded prompts, a second attention; 333 text tokens a branch."""
    pytest.importorskip("onnxruntime")
    pipes = [framert.load(sd3_bundle), framert.load(sd3_bundle, backend="triton", impl="reference", precision="fp32")]
    arguments = {"prompt": "a red cube", "negative_prompt": "blue", "steps": 4, "size": (48, 64), "seed": 1}
    exact, result = (pipe.run("text_to_image", guidance=4.0, **arguments) for pipe in pipes)
    assert relative(result.latents, exact.latents) <= 1e-4
    assert [key.words for key in pipes[1]._engine._pack._denoiser._steps] == [768]


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.02), ("bf16", 0.03), ("int8", 0.04), ("fp8", 0.08)])
def test_lower_precisions_stay_near(precision, allowed, loaded):
    results = {one: loaded(one).engine().submit(REQUESTS[0]).result() for one in ("fp32", precision)}
    assert 1e-5 < relative(results[precision].latents, results["fp32"].latents) < allowed


def test_a_failed_call_leaves_the_state(loaded, monkeypatch):
    pipe = loaded("fp32")
    expected = pipe.engine().submit(REQUESTS[1]).result().latents
    own, calls = joint_attention.frame_attention, []

    def fails_once(*args, **options):
        calls.append(1)
        if len(calls) == 4:  # in the second call's last layer
            raise RuntimeError("device lost\nmany more lines")
        return own(*args, **options)

    monkeypatch.setattr(joint_attention, "frame_attention", fails_once)
    engine = pipe.engine()
    with pytest.raises(BackendError, match=r"the denoiser failed: device lost$"):
        engine.submit(REQUESTS[1]).result()
    np.testing.assert_array_equal(engine.submit(REQUESTS[1]).result().latents, expected)


def test_warm_up_changes_nothing(loaded):
    pipe = loaded("fp32")
    expected = pipe.engine().submit(REQUESTS[0]).result().latents
    engine = pipe.engine()
    engine.warm_up([8, 70])
    assert [key.tokens for key in engine._pack._denoiser._steps] == [64, 128]
    np.testing.assert_array_equal(engine.submit(REQUESTS[0]).result().latents, expected)


def test_there_is_nothing_to_reuse(loaded):
    with pytest.raises(ConfigError, match="nothing to reuse"):
        loaded("fp32").generate(prompt="<t2i> a cube", steps=1, size=(32, 32), reuse=2)


@pytest.mark.parametrize("stored", ["int8", "float16", "int4"])
def test_bundles_already_quantized_are_refused(stored, univg_bundle):
    opened = Bundle.open(univg_bundle)
    graphs = dict(opened.manifest.graphs)
    graphs["denoiser"] = replace(graphs["denoiser"], precision=stored)
    other = replace(opened, manifest=replace(opened.manifest, graphs=graphs))
    with pytest.raises(BackendError, match=f"has its denoiser in {stored}, .*export the checkpoint in fp32"):
        create("triton", other, threads=None, impl="reference")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_captured_steps_equal_eager_ones_on_cuda(precision, univg_bundle, loaded, monkeypatch):
    pipe = framert.load(univg_bundle, backend="triton", precision=precision)
    replayed = pipe.engine().submit(REQUESTS[2]).result().latents
    monkeypatch.setattr("framert.runtime.backends.triton.step.Step.run", lambda step: step._compute())
    eager = framert.load(univg_bundle, backend="triton", precision=precision).engine().submit(REQUESTS[2]).result()
    np.testing.assert_array_equal(replayed, eager.latents)
    exact = loaded("fp32").engine().submit(REQUESTS[2]).result().latents
    allowed = 2 * relative(loaded(precision).engine().submit(REQUESTS[2]).result().latents, exact) + 1e-4
    assert relative(replayed, exact) <= allowed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
def test_packed_equals_alone_bit_for_bit_on_cuda(precision, univg_bundle):
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this device has no fp8")
    pipe = framert.load(univg_bundle, backend="triton", precision=precision)
    alone = [pipe.engine().submit(request).result() for request in REQUESTS]
    engine = pipe.engine()
    for ticket, expected in zip([engine.submit(request) for request in REQUESTS], alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected.latents)
