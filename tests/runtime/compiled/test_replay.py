"""A compiled request gives what ``run`` gives, bit for bit: nothing the engine does is missing from the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import framert
from framert.runtime import backends
from framert.runtime.bundle import Bundle, write_manifest
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.compiled.format import CompiledRequest
from framert.runtime.compiled.replay import replay
from framert.runtime.errors import BackendError, ConfigError, TaskError
from framert.runtime.manifest import TensorSpec
from framert.runtime.profiles import Capacity, plan_profiles, to_json

GOLDEN = Path(__file__).parents[2] / "golden"
PICTURES = [GOLDEN / f"input_{number}.png" for number in range(3)]
CAMERAS = framert.Cameras.orbit([0, 30, 60], [20, 20, 20], [2, 2, 2])
SMALL = {"size": (32, 32), "steps": 3}

REQUESTS = {
    "text": framert.Request(task="text_to_image", prompt="a red cube", size=(64, 96), steps=3, seed=1),
    "no guidance, heun": framert.Request(
        task="text_to_image", prompt="a cube", **SMALL, guidance=1.0, solver="heun", seed=2
    ),
    "depth, dpm": framert.Request(
        task="image_to_depth", images=PICTURES[:1], size=(48, 32), steps=4, seed=3, solver="dpmpp_2m"
    ),
    "negative prompt": framert.Request(
        task="edit", images=PICTURES[:1], prompt="make it green", negative_prompt="blurry", **SMALL, seed=4
    ),
    "same picture twice": framert.Request(
        task="identity", images=[PICTURES[0], PICTURES[1], PICTURES[0]], prompt="a face", **SMALL, seed=5
    ),
    "multiview": framert.Request(task="image_to_multiview", images=PICTURES[:1], cameras=CAMERAS, **SMALL, seed=6),
    "camera pose": framert.Request(task="camera_pose", images=PICTURES[:2], **SMALL, seed=7, solver="heun"),
}


@pytest.fixture(scope="module")
def bundle(golden_bundle):
    return Bundle.open(golden_bundle)


@pytest.fixture(scope="module")
def backend(bundle):
    return backends.create("onnxruntime", bundle, threads=1)


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


def replayed(requests, bundle, backend, folder):
    """Compile, write, read and run."""
    file = compile_requests(bundle, requests).save(folder / "request.safetensors")
    return replay(CompiledRequest.load(file), bundle, backend)


def same(got, expected):
    np.testing.assert_array_equal(got.latents, expected.latents)
    np.testing.assert_array_equal(got.pixels, expected.pixels)


@pytest.mark.parametrize("name", REQUESTS)
def test_replay_equals_run(name, bundle, backend, pipe, tmp_path):
    (got,) = replayed([REQUESTS[name]], bundle, backend, tmp_path)
    same(got, pipe.engine().submit(REQUESTS[name]).result())


def test_requests_that_share_calls_and_leave_at_different_ones(bundle, backend, pipe, tmp_path):
    """Three, three and five calls of different solvers, sizes and tasks: the tables change once on the way."""
    requests = [REQUESTS[name] for name in ("text", "camera pose", "negative prompt")]
    compiled = compile_requests(bundle, requests)
    assert [phase.calls for phase in compiled.phases] == [3, 2]
    for got, request in zip(replayed(requests, bundle, backend, tmp_path), requests, strict=True):
        same(got, pipe.engine().submit(request).result())


def test_two_results_of_one_prompt_condition_it_once(bundle, backend, pipe, tmp_path):
    first = framert.Request(task="text_to_image", prompt="a red cube", **SMALL, seed=8)
    requests = [first, framert.Request(task="text_to_image", prompt="a red cube", **SMALL, seed=9)]
    compiled = compile_requests(bundle, requests)
    assert (len(compiled.prompts), len(compiled.conditioning), len(compiled.phases)) == (
        2,
        2,
        1,
    )  # and the negative one
    results = pipe.run("text_to_image", prompt="a red cube", **SMALL, seed=8, count=2)
    for got, expected in zip(replayed(requests, bundle, backend, tmp_path), results, strict=True):
        same(got, expected)


def test_given_noise_is_in_the_file(bundle, backend, pipe, tmp_path):
    noise = np.random.default_rng(5).standard_normal((1, 16, 4, 4), np.float32)
    request = framert.Request(task="text_to_image", prompt="a cube", **SMALL, noise=noise)
    (got,) = replayed([request], bundle, backend, tmp_path)
    same(got, pipe.engine().submit(request).result())


def test_the_file_says_what_it_is(bundle, tmp_path):
    compiled = CompiledRequest.load(
        compile_requests(bundle, [REQUESTS["depth, dpm"]]).save(tmp_path / "request.safetensors")
    )
    assert compiled.metadata["version"] == "1"
    assert '"task": "image_to_depth"' in compiled.metadata["requests"]
    assert '"size": [48, 32]' in compiled.metadata["requests"]
    assert set(compiled.metadata["files"].split()) == {spec.sha256 for spec in bundle.manifest.files.values()}


def test_windows_reach_over_the_longest_sequence_and_text(bundle):
    (phase,) = compile_requests(bundle, [REQUESTS["text"]]).phases
    assert len(phase.tables["window"]) == phase.tables["q_range"][:, 1].max() == 24
    assert len(phase.tables["text_window"]) == phase.tables["text_range"][:, 1].max()
    assert phase.tables["window"].tolist() == list(range(24))


def test_every_input_of_the_denoiser_is_accounted_for(bundle):
    (phase,) = compile_requests(bundle, [REQUESTS["text"]]).phases
    made_by_the_replay = {"latents", "history", "modulation", "text_k", "text_v", "row", "update"}
    assert set(bundle.manifest.graphs["denoiser"].inputs) == {
        *made_by_the_replay,
        *(set(phase.tables) - {"window", "text_window"}),
    }


def test_engines_sizes_are_checked_before_anything_is_copied_to_a_board(bundle, tmp_path):
    """Of a bundle of engines the manifest, the tokenizer and the profiles are enough."""
    manifest = bundle.manifest
    graph = manifest.graphs["denoiser"]
    axes = {"window": "longest", "text_window": "text_longest"}
    inputs = {**graph.inputs, **{name: TensorSpec(dtype="int32", shape=(axis,)) for name, axis in axes.items()}}
    target = {"kind": "tensorrt", "version": "10.3.0", "compute_capability": "sm_87"}
    graphs = {**manifest.graphs, "denoiser": replace(graph, inputs=inputs)}
    write_manifest(tmp_path, replace(manifest, target=target, graphs=graphs))
    shutil.copy(bundle.path / "tokenizer.json", tmp_path)
    capacity = Capacity(tokens=(16, 64), sequences=3, side=128)
    table = to_json(plan_profiles(manifest, capacity, plugin=False))
    (tmp_path / "profiles.json").write_text(json.dumps(table))
    engines = Bundle.open(tmp_path, check_files=False)
    compile_requests(engines, [REQUESTS["no guidance, heun"]]).save(tmp_path / "request.safetensors")
    with pytest.raises(BackendError, match=r"asked for 4 sequences.*framert build"):
        compile_requests(engines, [REQUESTS["no guidance, heun"]] * 4)
    with pytest.raises(BackendError, match="built for 1 to 64"):
        compile_requests(engines, [replace(REQUESTS["text"], size=(96, 96))])  # 36 tokens in two branches


def test_bad_calls_are_refused(bundle):
    with pytest.raises(ConfigError, match="no request was given"):
        compile_requests(bundle, [])
    with pytest.raises(ConfigError, match="reuse is 2"):
        compile_requests(bundle, [framert.Request(task="image_to_depth", images=PICTURES[:1], **SMALL, reuse=2)])
    with pytest.raises(TaskError, match="no task"):
        compile_requests(bundle, [framert.Request(task="nothing")])
