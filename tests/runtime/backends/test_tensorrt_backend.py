"""Backend "tensorrt" as a whole, on an emulated GPU: golden vectors, packs, captured steps, memory, plugins."""

import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import framert
from framert.kernels.plugin.launch import Launch
from framert.runtime.backends.tensorrt import denoiser as denoiser_module
from framert.runtime.backends.tensorrt.backend import TensorRtBackend
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError, ConfigError

GOLDEN = Path(__file__).parents[2] / "golden"
INPUT = GOLDEN / "input_0.png"
VELOCITIES = sorted(path.stem for path in GOLDEN.glob("transformer_*.npz"))
KINDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

# together at most 64 tokens, so that they share a bucket with each of them alone
REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", steps=3, size=(32, 48), seed=1, guidance=3.0),
    framert.Request(task="image_to_depth", images=[INPUT], steps=4, size=(48, 32), seed=2, solver="heun"),
    framert.Request(
        task="image_to_depth", images=[INPUT], steps=5, size=(32, 32), seed=3, guidance=2.0, solver="dpmpp_2m"
    ),
]
CUBE = {"task": "text_to_image", "prompt": "a red cube", "size": (64, 64), "seed": 1, "guidance": 3.0}
LAUNCH = Launch(
    target="sm_89", entry="kernel", arguments=(), divisible=(), constants={}, grid=("1", "1", "1"), threads=128,
    shared_memory=0, kernel_hash="0123456789abcdef" * 4, **{fields(Launch)[-1].name: b"cubin"},
)  # fmt: skip


def relative(got, exact):
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="session")
def expected(golden_bundle):
    """Return what backend "onnxruntime" makes of a call; each is made once."""
    pipe, made = framert.load(golden_bundle, threads=1), {}

    def run(**call):
        key = repr(sorted(call.items()))
        if key not in made:
            made[key] = pipe.run(**call)
        return made[key]

    return run


@pytest.fixture(scope="session")
def engine_bundles(engine_bundle, golden_bundle, build_engines, tmp_path_factory):
    """Bundles of both kinds, and one whose attention is a plugin's."""
    from framert.runtime.profiles import Capacity

    capacity = Capacity(tokens=(64, 256), sequences=8, side=64)
    folder = tmp_path_factory.mktemp("kinds")
    more = {"capacity": capacity}
    return {
        "tensorrt": engine_bundle,
        "tensorrt-rtx": build_engines(golden_bundle, folder / "rtx", kind="tensorrt-rtx", **more),
        "plugin": build_engines(golden_bundle, folder / "plugin", launches=[LAUNCH], **more),
    }


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx", "plugin"])
@pytest.mark.parametrize("name", VELOCITIES)
def test_golden_velocity(name, kind, machine, engine_bundles):
    machine()
    pipe = framert.load(engine_bundles[kind], backend="tensorrt")
    vectors = np.load(GOLDEN / f"{name}.npz")
    got = pipe.velocity(vectors["samples"], vectors["timesteps"], vectors["text"], vectors["text_mask"])
    assert relative(got, vectors["velocity"]) < 1e-5


@pytest.mark.parametrize("kind", ["tensorrt", "plugin"])
@pytest.mark.parametrize(
    "call",
    [
        {**CUBE, "steps": 6},
        {**CUBE, "steps": 5, "solver": "dpmpp_2m", "size": (48, 64)},
        {"task": "image_to_depth", "images": [INPUT], "steps": 4, "solver": "heun", "size": (64, 64)},
        {"task": "image_to_multiview", "images": [INPUT], "steps": 3, "size": (32, 32), "guidance": 3.0,
         "cameras": framert.Cameras.orbit([0, 20, 40], [20] * 3, [3] * 3)},
    ],
    ids=["euler", "dpmpp_2m", "heun", "multiview"],
)  # fmt: skip
def test_a_task_from_prompt_to_picture_equals_onnxruntime(call, kind, machine, engine_bundles, expected):
    machine()
    got, exact = framert.load(engine_bundles[kind], backend="tensorrt").run(**call), expected(**call)
    assert relative(got.latents, exact.latents) < 1e-4
    for picture, other in zip(got.images, exact.images, strict=True):
        assert np.abs(np.asarray(picture, np.int16) - np.asarray(other, np.int16)).max() <= 1


@pytest.mark.parametrize("kind", ["tensorrt", "plugin"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 1)], ids=str)
def test_packed_equals_alone_bit_for_bit(order, kind, machine, engine_bundles):
    machine()
    pipe = framert.load(engine_bundles[kind], backend="tensorrt")
    alone = [pipe.engine().submit(request).result() for request in REQUESTS]
    engine = pipe.engine()
    tickets = [engine.submit(REQUESTS[index]) for index in order]
    while engine.step():
        pass
    for index, ticket in zip(order, tickets, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, alone[index].latents)


def test_auto_takes_it_for_engines_and_says_why(machine, engine_bundles):
    machine()
    for kind in KINDS:
        pipe = framert.load(engine_bundles[kind], backend="auto")
        assert (pipe.backend_name, pipe.backend_reason) == ("tensorrt", f"the bundle holds engines for {kind}")


@pytest.mark.parametrize("option", [{"threads": 2}, {"precision": "fp16"}, {"impl": "triton"}], ids=str)
def test_options_of_others_are_refused(option, machine, engine_bundle):
    machine()
    with pytest.raises(ConfigError, match="leave it out"):
        framert.load(engine_bundle, backend="tensorrt", **option)


def test_a_step_is_queued_then_captured_then_replayed(machine, engine_bundle):
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    calls = made.trt["tensorrt"].calls
    pipe.run(**CUBE, steps=9)
    queued = [call for call in calls if call[0] == "denoiser"]
    # both ways that latents move: first plain, then recorded. Of nine steps seven are replays.
    assert (len(queued), made.cuda.launches) == (4, 7)
    assert len({str(call) for call in queued}) == 1
    before, allocations = len(calls), made.cuda.allocations
    pipe.run(**{**CUBE, "seed": 2}, steps=9)
    assert [call[0] for call in calls[before:]] == ["vae_decoder"]  # prompt and schedule are known
    assert (made.cuda.launches, made.cuda.allocations) == (16, allocations)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tensorrt", "operation not permitted when stream is capturing"),
        ("tensorrt-rtx", "TensorRT says that it cannot"),
    ],
)
def test_results_do_not_depend_on_capturing(kind, reason, machine, engine_bundles, caplog):
    """One version says beforehand that it cannot; the other finds out in the attempt, after which the stream works."""
    results = []
    for capturable in (True, False):
        made = machine(capturable=capturable)
        with caplog.at_level(logging.WARNING):
            results.append(framert.load(engine_bundles[kind], backend="tensorrt").run(**CUBE, steps=6).latents)
        assert bool(made.cuda.launches) is capturable
        assert ("not captured as a CUDA graph" in caplog.text) is not capturable
    np.testing.assert_array_equal(*results)
    assert reason in caplog.text


def test_arenas_grow_behind_captured_steps(machine, engine_bundle, monkeypatch):
    """A growing arena moves, and a graph that read the old one would read freed memory."""
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    exact = [pipe.run(**CUBE, steps=6).latents, pipe.run(**{**CUBE, "prompt": "a sphere " * 12}, steps=6).latents]
    monkeypatch.setattr("framert.runtime.store.FIRST_TEXT", 8)
    monkeypatch.setattr("framert.runtime.store.FIRST_ROWS", 8)
    engine = pipe.engine()
    first = engine.submit(framert.Request(**CUBE, steps=6))
    for _ in range(5):
        engine.step()
    launched = made.cuda.launches
    second = engine.submit(framert.Request(**{**CUBE, "prompt": "a sphere " * 12}, steps=6))
    while engine.step():
        pass
    assert made.cuda.launches > launched
    assert relative(first.result().latents, exact[0]) < 1e-6  # the last call ran in a larger bucket
    assert relative(second.result().latents, exact[1]) < 1e-6


def test_forgotten_steps_are_made_again(machine, engine_bundle, monkeypatch):
    machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    sizes = [(32, 32), (64, 64), (32, 32), (64, 64)]
    exact = [pipe.run(**{**CUBE, "size": size}, steps=5).latents for size in sizes[:2]]
    monkeypatch.setattr(denoiser_module, "MAX_STEPS", 1)
    for index, size in enumerate(sizes):
        np.testing.assert_array_equal(pipe.run(**{**CUBE, "size": size}, steps=5).latents, exact[index % 2])


def test_engines_share_one_block_as_large_as_the_largest_asks_for(machine, engine_bundle):
    made = machine()
    backend = TensorRtBackend(Bundle.open(engine_bundle))
    denoisers = [backend.denoiser() for _ in range(3)]
    assert made.trt["tensorrt"].engines == 5
    assert backend._device.activations.size == max(one.size for one in backend._engines.values())
    assert list(made.cuda.live).count(backend._device.activations.address) == 1
    assert len({id(denoiser._device) for denoiser in denoisers}) == 1


@pytest.mark.parametrize("kind", ["tensorrt", "plugin"])
def test_low_memory_holds_one_engine_at_a_time(kind, machine, engine_bundles, expected):
    made = machine()
    call = {"task": "image_to_depth", "images": [INPUT], "steps": 6, "size": (64, 64), "guidance": 2.0}
    pipe = framert.load(engine_bundles[kind], backend="tensorrt", low_memory=True)
    assert made.trt["tensorrt"].engines == 0
    got = pipe.run(**call)
    assert made.trt["tensorrt"].most_engines == 1
    assert relative(got.latents, expected(**call).latents) < 1e-4
    again = pipe.run(**call)
    np.testing.assert_array_equal(again.latents, got.latents)
    small = made.cuda.used
    made = machine()
    pipe = framert.load(engine_bundles[kind], backend="tensorrt")
    pipe.run(**call)
    assert small < made.cuda.used


def test_a_preview_in_low_memory_comes_back_to_the_same_latents(machine, engine_bundle):
    """The decoder takes the denoiser's place in the middle of a request, with its arenas and latents on the device."""
    machine()
    call = {**CUBE, "steps": 6}
    exact = framert.load(engine_bundle, backend="tensorrt").run(**call).latents
    pipe = framert.load(engine_bundle, backend="tensorrt", low_memory=True)
    shown = []
    got = pipe.run(**call, on_step=lambda info: shown.append(info.preview() if info.step in (2, 4) else None))
    assert sum(one is not None for one in shown) == 2
    np.testing.assert_array_equal(got.latents, exact)


def test_memory_is_given_back(machine, engine_bundle):
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    vectors = np.load(GOLDEN / "transformer_one_frame.npz")
    call = [vectors[name] for name in ("samples", "timesteps", "text", "text_mask")]
    pipe.velocity(*call)
    pipe.velocity(*call)  # frees what the first one held
    used = made.cuda.used
    for _ in range(3):
        pipe.velocity(*call)
    assert made.cuda.used == used


def test_all_is_given_back_with_its_owner(machine, engine_bundle):
    """Captured steps with an engine, everything with the pipeline: another one then finds the memory free."""
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    engine = pipe.engine()
    engine.submit(framert.Request(**CUBE, steps=6)).result()
    captured = len(made.cuda.executables)
    del engine
    gc.collect()
    pipe.run(**CUBE, steps=6)  # as many, by a denoiser of its own
    assert captured
    assert len(made.cuda.executables) == captured
    assert made.cuda.used
    assert made.cuda.pinned
    del pipe
    gc.collect()
    assert (made.cuda.used, made.cuda.pinned, made.cuda.executables, made.cuda.events) == (0, {}, {}, {})


def test_a_failed_step_leaves_the_state(machine, engine_bundle, monkeypatch):
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    exact = pipe.run(**CUBE, steps=4).latents
    engine = pipe.engine()
    tickets = [engine.submit(framert.Request(**{**CUBE, "seed": seed}, steps=4)) for seed in (1, 2)]
    engine.step()
    emulated = type(made.trt["tensorrt"]).context_class
    execute, failures = emulated.execute_async_v3, iter([True])

    def sometimes(self, stream):
        return execute(self, stream) if not next(failures, False) else self._refuse("out of luck")

    monkeypatch.setattr(emulated, "execute_async_v3", sometimes)
    while engine.step():  # the failed call is made again by each alone
        pass
    assert relative(tickets[0].result().latents, exact) < 1e-6


def test_engines_in_threads_do_not_disturb_each_other(machine, engine_bundle):
    machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    exact = [pipe.engine().submit(request).result().latents for request in REQUESTS]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda request: pipe.engine().submit(request).result().latents, REQUESTS * 2))
    for index, latents in enumerate(got):
        np.testing.assert_array_equal(latents, exact[index % 3])


def test_warm_up_captures_what_requests_then_replay(machine, engine_bundle):
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    pipe.warm_up([32])
    contexts = made.trt["tensorrt"].contexts
    pipe.run(**CUBE, steps=4)  # two branches of 16 tokens
    assert made.trt["tensorrt"].contexts == contexts + 3  # of the graphs around the denoiser


@pytest.mark.parametrize("streamable", [0, 1 << 20])
def test_weights_are_streamed_where_engines_were_built_for_it(
    streamable, machine, golden_bundle, build_engines, tmp_path
):
    from framert.runtime.profiles import Capacity

    machine()
    capacity = Capacity(tokens=(64,), sequences=3, side=64)
    path = build_engines(golden_bundle, tmp_path / "b", capacity=capacity, streamable=streamable)
    backend = TensorRtBackend(Bundle.open(path))
    backend.denoiser()
    assert {engine.streamed for engine in backend._engines.values()} == {streamable // 2}


def test_rtx_compiles_kernels_once_for_all_processes(machine, engine_bundles, tmp_path):
    made = machine()
    exact = framert.load(engine_bundles["tensorrt-rtx"], backend="tensorrt").run(**CUBE, steps=6)
    first = made.trt["tensorrt_rtx"].compiled
    assert first == 4  # of text encoder and conditioner one set for all lengths; of step and decoder one for this size
    files = sorted((tmp_path / "cache" / "tensorrt-rtx").iterdir())
    assert [file.name.split("-")[0] for file in files] == ["conditioner", "denoiser", "text_encoder", "vae_decoder"]
    made = machine()  # as another process
    again = framert.load(engine_bundles["tensorrt-rtx"], backend="tensorrt").run(**CUBE, steps=6)
    assert made.trt["tensorrt_rtx"].compiled == 0
    np.testing.assert_array_equal(again.latents, exact.latents)
    files[0].write_bytes(b"damaged")
    made = machine()
    framert.load(engine_bundles["tensorrt-rtx"], backend="tensorrt").run(**CUBE, steps=6)
    assert 0 < made.trt["tensorrt_rtx"].compiled < first
    assert b"damaged" not in files[0].read_bytes()


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.1.11"])
def test_engines_for_later_versions_run_in_them(version, machine, golden_bundle, build_engines, tmp_path):
    from framert.runtime.profiles import Capacity

    machine(version=version)
    capacity = Capacity(tokens=(64,), sequences=3, side=64)
    path = build_engines(golden_bundle, tmp_path / "b", capacity=capacity, built={"compatible": "version"})
    framert.load(path, backend="tensorrt").run(**CUBE, steps=1)


def test_the_plugin_is_registered_before_its_engine_is_read_and_once(machine, engine_bundles):
    made = machine()
    for _ in range(2):
        framert.load(engine_bundles["plugin"], backend="tensorrt")
    assert list(made.trt["tensorrt"].creators) == [("framert", "FrameAttention")]
    made = machine()
    framert.load(engine_bundles["tensorrt"], backend="tensorrt")
    assert not made.trt["tensorrt"].creators


def test_another_plugin_of_that_name_is_refused(machine, engine_bundles):
    made = machine()
    made.trt["tensorrt"].creators["framert", "FrameAttention"] = object()
    with pytest.raises(BackendError, match="another plugin FrameAttention is registered in this process"):
        framert.load(engine_bundles["plugin"], backend="tensorrt")


def test_an_engine_with_another_kernel_than_its_manifest_names_is_refused(
    machine, golden_bundle, build_engines, engine_bundles, tmp_path
):
    import shutil

    from framert.runtime.bundle import file_specs, write_manifest

    machine()
    copy = Path(shutil.copytree(engine_bundles["plugin"], tmp_path / "b"))
    opened = Bundle.open(copy)
    other = {**opened.manifest.target, "kernels": "sm_89:ffffffffffffffff"}
    write_manifest(copy, replace(opened.manifest, target=other, files=file_specs(copy)))
    with pytest.raises(BackendError) as caught:
        framert.load(copy, backend="tensorrt")
    message = str(caught.value)
    assert "denoiser.engine holds the attention kernel sm_89:0123456789abcdef, and its manifest names " in message
    assert f"framert build ONNX_BUNDLE -o {copy} --force" in message
    assert "--attention plugin" in message
