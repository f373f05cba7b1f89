"""Backend "triton" as a whole: on the CPU by its references and in Triton's interpreter, and on CUDA where there is."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import framert  # noqa: E402
from framert.runtime.backends.triton import denoiser as denoiser_module  # noqa: E402
from framert.runtime.backends.triton import forward  # noqa: E402
from framert.runtime.backends.triton import model as model_module  # noqa: E402
from framert.runtime.backends.triton.backend import TritonBackend  # noqa: E402
from framert.runtime.bundle import Bundle  # noqa: E402
from framert.runtime.components import Components  # noqa: E402
from framert.runtime.config import EngineConfig  # noqa: E402
from framert.runtime.engine import Engine  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
INPUT = GOLDEN / "input_0.png"
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")

# together fewer than 64 tokens, so that they share a bucket with each of them alone
REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", steps=3, size=(32, 48), seed=1, guidance=3.0),
    framert.Request(task="image_to_depth", images=[INPUT], steps=4, size=(48, 32), seed=2, solver="heun"),
    framert.Request(
        task="image_to_depth", images=[INPUT], steps=5, size=(32, 32), seed=3, guidance=2.0, solver="dpmpp_2m"
    ),
]
DEPTH = {"images": [INPUT], "prompt": "a cube", "mask": [1, 0], "size": (64, 64), "guidance": 3.0}


def relative(actual, exact):
    return float(np.linalg.norm(np.asarray(actual, np.float64) - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def loaded(golden_bundle):
    """Return a pipeline on the reference of a precision, loaded once."""
    made = {}

    def load(precision):
        if precision not in made:
            made[precision] = framert.load(golden_bundle, backend="triton", impl="reference", precision=precision)
        return made[precision]

    return load


def shallow(golden_bundle, depth, impl, precision):
    """Return an engine on the first layers of the golden model."""
    bundle = Bundle.open(golden_bundle)
    backend = TritonBackend(bundle, impl=impl, precision=precision)
    backend.denoiser()
    model = backend._model
    model.weights = replace(model.weights, layers=model.weights.layers[:depth])
    return Engine(bundle, backend, Components(bundle, backend), EngineConfig())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 1)], ids=str)
def test_packed_equals_alone_bit_for_bit(order, precision, loaded):
    pipe = loaded(precision)
    alone = [pipe.engine().submit(request).result() for request in REQUESTS]
    engine = pipe.engine()
    tickets = [engine.submit(REQUESTS[index]) for index in order]
    while engine.step():
        pass
    for index, ticket in zip(order, tickets, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, alone[index].latents)


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.005), ("bf16", 0.04), ("int8", 0.08), ("fp8", 0.25)])
def test_lower_precisions_stay_near(precision, allowed, loaded, record_property):
    """Random weights, which no precision was made for: benchmarks/bench_triton_quality.py takes a trained model."""
    vectors = np.load(GOLDEN / "transformer_two_frames_mixed_noise.npz")
    call = (vectors["samples"], vectors["timesteps"], vectors["text"], vectors["text_mask"])
    error = relative(loaded(precision).velocity(*call), vectors["velocity"])
    record_property("golden", (f"triton, {precision}", "velocity, relative", error, allowed))
    assert 1e-4 < error < allowed


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs where Triton interprets (no CUDA)")
@pytest.mark.parametrize(("precision", "depth", "steps"), [("bf16", 2, 2), ("fp32", 2, 1), ("fp16", 2, 1),
                                                           ("int8", 1, 1), ("fp8", 1, 1)])  # fmt: skip
def test_kernels_match_the_references_end_to_end(precision, depth, steps, golden_bundle, monkeypatch):
    """Every kernel in its place, in Triton's interpreter."""
    monkeypatch.setattr(denoiser_module, "LEAST_SEQUENCES", 2)  # it takes its time for empty ones too

    def run(impl, computed_in):
        engine = shallow(golden_bundle, depth, impl, computed_in)
        request = framert.Request(**{**DEPTH, "size": (32, 32), "guidance": 1.0}, steps=steps, seed=5)
        return engine.submit(request).result().latents[:1] - request_noise

    request_noise = np.random.default_rng(5).standard_normal((2, 16, 4, 4), np.float32)[:1]
    exact = run("reference", "fp32")
    allowed = 2 * relative(run("reference", precision), exact) + 1e-5
    assert relative(run("triton", precision), exact) <= allowed


def test_reuse_of_one_is_off(loaded):
    pipe = loaded("fp32")
    without, one = pipe.generate(**DEPTH, steps=4), pipe.generate(**DEPTH, steps=4, reuse=1)
    np.testing.assert_array_equal(one.latents, without.latents)
    assert one.settings == without.settings
    assert pipe.generate(**DEPTH, steps=2, reuse=2).settings["reuse"] == 2


@pytest.mark.parametrize(("reuse", "allowed"), [(2, 0.3), (4, 0.4)])
def test_reuse_stays_near(reuse, allowed, loaded, record_property):
    """With random weights the condition frames' keys move as much as they ever can from step to step."""
    pipe = loaded("fp32")
    error = relative(pipe.generate(**DEPTH, steps=8, reuse=reuse).latents, pipe.generate(**DEPTH, steps=8).latents)
    record_property("golden", (f"triton, reuse={reuse}", "latents, relative", error, allowed))
    assert 1e-4 < error < allowed


@pytest.mark.parametrize("reuse", [2, 3, 100])
def test_reuse_is_exact_where_nothing_is_lost(reuse, golden_bundle):
    """In a model of one layer a condition frame's keys depend on its own tokens alone, so they never change."""
    engine = shallow(golden_bundle, 1, "reference", "fp32")

    def run(every):
        mask = (0, 1, 0)
        images = [INPUT, GOLDEN / "input_1.png"]
        request = framert.Request(
            prompt="a cube", images=images, mask=mask, size=(48, 64), guidance=3.0, steps=5, reuse=every
        )
        return engine.submit(request).result().latents

    assert relative(run(reuse), run(1)) < 1e-6


def test_reuse_packed_equals_alone(loaded):
    """Requests that join and leave at other phases, one that does not reuse among them; room is made meanwhile."""
    pipe = loaded("fp32")
    requests = [
        framert.Request(**{**DEPTH, "size": (32, 32)}, steps=6, seed=seed, reuse=reuse)
        for seed, reuse in enumerate((2, 3, 1, 4))
    ]
    alone = [pipe.engine().submit(request).result().latents for request in requests]
    engine = pipe.engine()
    tickets = []
    for request in requests:
        tickets.append(engine.submit(request))
        engine.step()
    for ticket, expected in zip(tickets, alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reuse": 0}, "reuse is 0"),
        ({"reuse": 1.5}, "reuse is 1.5"),
        ({"reuse": True}, "reuse is True"),
        ({"reuse": 2, "images": [], "mask": [1]}, "nothing to reuse"),
    ],
)
def test_reuse_that_cannot_be_is_refused(change, says, loaded):
    with pytest.raises(ConfigError, match=says):
        loaded("fp32").generate(**{**DEPTH, "steps": 1, **change})


def test_other_backends_refuse_reuse(golden_bundle):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="backend='triton'"):
        framert.load(golden_bundle).generate(**DEPTH, steps=1, reuse=2)


def test_a_failed_call_leaves_the_state(golden_bundle, monkeypatch):
    pipe = framert.load(golden_bundle, backend="triton", impl="reference", precision="fp32")
    expected = pipe.generate(**DEPTH, steps=3).latents
    own, calls = forward.frame_attention, []

    def fails_once(*args, **options):
        calls.append(1)
        if len(calls) == 5:  # in the second call's second layer
            raise RuntimeError("device lost\nmany more lines")
        return own(*args, **options)

    monkeypatch.setattr(forward, "frame_attention", fails_once)
    engine = pipe.engine()
    failing = engine.submit(framert.Request(**DEPTH, steps=3))
    with pytest.raises(BackendError, match=r"the denoiser failed: device lost$"):
        failing.result()
    np.testing.assert_array_equal(pipe.generate(**DEPTH, steps=3).latents, expected)

    calls.clear()
    tickets = [engine.submit(framert.Request(**DEPTH, steps=3)) for _ in range(2)]  # each is then tried alone
    for ticket in tickets:
        np.testing.assert_array_equal(ticket.result().latents, expected)


def test_packs_of_a_bucket_share_one_step_and_their_number_is_bounded(golden_bundle, monkeypatch):
    backend = TritonBackend(Bundle.open(golden_bundle), impl="reference", precision="fp32")
    denoiser = backend.denoiser()
    monkeypatch.setattr(denoiser_module, "MAX_STEPS", 3)
    components = Components(Bundle.open(golden_bundle), backend)
    engine = Engine(Bundle.open(golden_bundle), backend, components, EngineConfig())
    engine._pack._denoiser = denoiser
    engine._store._denoiser = denoiser
    engine.warm_up([40, 64, 50])
    assert [key.tokens for key in denoiser._steps] == [64]
    engine.warm_up([70, 130, 250, 64, 250])
    assert [key.tokens for key in denoiser._steps] == [192, 64, 256]
    assert set(denoiser._states) == {64, 192, 256}
    denoiser.reserve(text=4096, rows=1)  # the arena moves, and with it every address a graph would hold
    assert not denoiser._steps


def test_the_bucket_alone_sets_the_tile_of_attention(loaded, monkeypatch):
    own, seen = forward.frame_attention, []

    def recorded(*args, **options):
        seen.append((len(args[0]), options["query_tile"]))
        return own(*args, **options)

    monkeypatch.setattr(forward, "frame_attention", recorded)
    monkeypatch.setattr(model_module, "SHORT", 128)
    loaded("fp32").engine().warm_up([64, 128, 129])
    assert set(seen) == {(64, 64), (128, 64), (192, None)}


def test_warm_up_changes_nothing(loaded, golden_bundle):
    pipe = framert.load(golden_bundle, backend="triton", impl="reference", precision="fp32")
    pipe.warm_up([8, 300])
    np.testing.assert_array_equal(
        pipe.generate(**DEPTH, steps=2).latents, loaded("fp32").generate(**DEPTH, steps=2).latents
    )
    engine = pipe.engine(max_tokens=64)
    ticket = engine.submit(REQUESTS[0])
    engine.step()
    engine.warm_up([64])
    np.testing.assert_array_equal(ticket.result().latents, loaded("fp32").engine().submit(REQUESTS[0]).result().latents)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, 65])
def test_warm_up_of_impossible_sizes_is_refused(count, loaded):
    with pytest.raises(ConfigError, match="give whole numbers from 1 up to 64"):
        loaded("fp32").engine(max_tokens=64).warm_up([count])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_packed_equals_alone_bit_for_bit_on_cuda(precision, golden_bundle):
    """Here products are a library's, which nothing but this holds to one order of sums for every row."""
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this device has no fp8")
    pipe = framert.load(golden_bundle, backend="triton", precision=precision)
    alone = [pipe.engine().submit(request).result() for request in REQUESTS]
    engine = pipe.engine()
    for request, ticket, expected in zip(REQUESTS, [engine.submit(item) for item in REQUESTS], alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected.latents, err_msg=str(request.task))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_steps_are_captured_again_after_the_arenas_moved_and_by_several_engines(golden_bundle):
    """With all its graphs torch retires the memory that they shared; and it captures one graph at a time."""
    pipe = framert.load(golden_bundle, backend="triton", precision="fp32")
    engines = [pipe.engine() for _ in range(3)]
    for text in (2048, 8192):
        for engine in engines:
            engine._pack._denoiser.reserve(text=text, rows=1)
            assert not engine._pack._denoiser.captured()
        with ThreadPoolExecutor(len(engines)) as threads:
            list(threads.map(lambda engine: engine.warm_up([64, 100, 300]), engines))
        assert [len(engine._pack._denoiser.captured()) for engine in engines] == [3, 3, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_captured_steps_equal_eager_ones_on_cuda(precision, golden_bundle, loaded, monkeypatch):
    pipe = framert.load(golden_bundle, backend="triton", precision=precision)
    request = {**DEPTH, "steps": 6, "seed": 3}
    replayed = pipe.generate(**request).latents
    assert pipe._engine._pack._denoiser.captured()
    monkeypatch.setattr("framert.runtime.backends.triton.step.Step.run", lambda step: step._compute())
    eager = framert.load(golden_bundle, backend="triton", precision=precision)
    np.testing.assert_array_equal(replayed, eager.generate(**request).latents)
    exact = loaded("fp32").generate(**request).latents
    allowed = 2 * relative(loaded(precision).generate(**request).latents, exact) + 1e-4
    assert relative(replayed, exact) <= allowed
