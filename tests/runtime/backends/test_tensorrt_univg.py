"""Backend "tensorrt" with text inside the sequence, on an emulated GPU: UniVG and Stable Diffusion 3."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import framert
from framert.kernels.plugin.launch import Launch
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.profiles import Capacity

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
CUBE = {"task": "text_to_image", "prompt": "a red cube", "size": (48, 64), "seed": 1}
REQUESTS = {
    "sd3": {
        "guided": {**CUBE, "steps": 6},
        "alone": {**CUBE, "steps": 3, "guidance": 1.0, "size": (16, 16), "solver": "heun"},
    },
    "univg": {
        "without a picture": {**CUBE, "steps": 6},
        "two guidances": {"task": "edit", "images": [PICTURE], "prompt": "make it red " * 5, "size": (32, 32),
                          "steps": 4, "seed": 2, "solver": "dpmpp_2m"},
        "references": {"task": "identity", "images": [PICTURE, PICTURE.rotate(90)], "prompt": "a cube", "steps": 3,
                       "size": (32, 16), "seed": 3},
        "whole": {"task": "image_to_depth", "images": [PICTURE], "steps": 3, "size": (64, 64), "seed": 4},
    },
}  # fmt: skip
CASES = [(family, name) for family, calls in REQUESTS.items() for name in calls]
SMALL = Capacity(tokens=(64, 256), sequences=8, side=64)
LAUNCH = Launch(
    target="sm_89", entry="kernel", arguments=(), divisible=(), constants={"TEXT": False}, grid=("1", "1", "1"),
    threads=128, shared_memory=0, kernel_hash="0123456789abcdef" * 4, image=b"cubin",
)  # fmt: skip


def relative(got, exact):
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def bundles(sd3_bundle, univg_bundle):
    return {"sd3": sd3_bundle, "univg": univg_bundle}


@pytest.fixture(scope="module")
def engines(bundles, build_engines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    return {family: build_engines(bundle, folder / family, capacity=SMALL) for family, bundle in bundles.items()}


@pytest.fixture(scope="module")
def expected(bundles):
    """What backend "onnxruntime" makes of the calls."""
    return {
        (family, name): framert.load(bundles[family], threads=1).run(**REQUESTS[family][name]) for family, name in CASES
    }


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_task_from_prompt_to_picture_equals_onnxruntime(family, name, machine, engines, expected):
    made = machine()
    got, exact = framert.load(engines[family], backend="tensorrt").run(**REQUESTS[family][name]), expected[family, name]
    assert relative(got.latents, exact.latents) < 1e-4
    for picture, other in zip(got.images, exact.images, strict=True):
        assert np.abs(np.asarray(picture, np.int16) - np.asarray(other, np.int16)).max() <= 1
    steps = [shapes for graph, _, shapes in made.trt["tensorrt"].calls if graph == "denoiser"]
    assert len({str(shapes) for shapes in steps}) == 1
    assert steps[0]["text_source"][0] % 64 == 0


@pytest.mark.parametrize("family", REQUESTS)
def test_packed_raggedly_equals_onnxruntime(family, machine, engines, expected):
    """Prompts and pictures of unlike length; members leave one after another."""
    machine()
    engine = framert.load(engines[family], backend="tensorrt").engine()
    tickets = {name: engine.submit(framert.Request(**call)) for name, call in REQUESTS[family].items()}
    for name, ticket in tickets.items():
        assert relative(ticket.result().latents, expected[family, name].latents) < 1e-4


def test_a_plugins_engine_has_no_windows(machine, bundles, build_engines, expected, tmp_path):
    made = machine()
    path = build_engines(bundles["univg"], tmp_path / "b", capacity=SMALL, launches=[LAUNCH])
    engine = framert.load(path, backend="tensorrt").engine()
    tickets = {name: engine.submit(framert.Request(**call)) for name, call in REQUESTS["univg"].items()}
    for name, ticket in tickets.items():
        assert relative(ticket.result().latents, expected["univg", name].latents) < 1e-4
    steps = [shapes for graph, _, shapes in made.trt["tensorrt"].calls if graph == "denoiser"]
    assert all("window" not in shapes and shapes["q_range"][0] % 8 == 0 for shapes in steps)


def test_packed_equals_alone_bit_for_bit_within_a_bucket(machine, engines):
    """Together at most 64 model tokens and 64 text tokens, and one window."""
    machine()
    pipe = framert.load(engines["univg"], backend="tensorrt")
    small = {"prompt": "a cube", "steps": 3, "size": (32, 32), "guidance": 1.0}
    asked = [framert.Request(task="text_to_image", seed=seed, **small) for seed in (1, 2, 3)]
    alone = [pipe.engine().submit(request).result().latents for request in asked]
    engine = pipe.engine()
    tickets = [engine.submit(request) for request in asked]
    for ticket, exact in zip(tickets, alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, exact)


def test_steps_are_replayed_and_features_may_be_none(machine, engines):
    made = machine()
    pipe = framert.load(engines["univg"], backend="tensorrt")
    assert made.trt["tensorrt"].engines == len(Bundle.open(engines["univg"]).manifest.graphs)
    pipe.run(**{**CUBE, "steps": 9})
    calls = made.trt["tensorrt"].calls
    assert (sum(graph == "denoiser" for graph, *_ in calls), made.cuda.launches) == (4, 7)
    assert {shapes["feature"] for graph, _, shapes in calls if graph == "text_encoder"} == {(0, 64)}
    before = len(calls)
    pipe.run(**{**CUBE, "steps": 9, "seed": 2})
    assert [graph for graph, *_ in calls[before:]] == ["vae_decoder"]


def test_warm_up_runs_on_nothing(machine, engines, expected):
    """Before any prompt: no text, one sequence. Requests give what they give without it."""
    made = machine()
    pipe = framert.load(engines["univg"], backend="tensorrt")
    pipe.warm_up([16, 200])
    assert made.cuda.launches
    got = pipe.run(**REQUESTS["univg"]["two guidances"])
    assert relative(got.latents, expected["univg", "two guidances"].latents) < 1e-4


def test_low_memory_holds_one_engine_at_a_time(machine, engines, expected):
    made = machine()
    pipe = framert.load(engines["univg"], backend="tensorrt", low_memory=True)
    got = pipe.run(**REQUESTS["univg"]["references"])
    assert made.trt["tensorrt"].most_engines == 1
    assert relative(got.latents, expected["univg", "references"].latents) < 1e-4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"size": (128, 128), "guidance": 1.0}, "vae_decoder was asked for .* --side 128"),
        ({"guidance": 4.0, "size": (64, 128)}, "vae_decoder was asked for 16 latent pixels high, .* --side 128"),
    ],
    ids=["larger", "taller"],
)
def test_a_request_beyond_the_profiles_is_refused_with_what_to_build(call, says, machine, engines):
    machine()
    engine = framert.load(engines["univg"], backend="tensorrt").engine()
    with pytest.raises(BackendError, match=says):
        engine.submit(framert.Request(**{**CUBE, **call}))


def test_a_sequence_longer_than_its_part_is_refused_with_what_takes_it(machine, bundles, build_engines, tmp_path):
    machine()
    small = build_engines(bundles["univg"], tmp_path / "b", capacity=Capacity(tokens=(24,), sequences=4, side=64))
    engine = framert.load(small, backend="tensorrt").engine()
    with pytest.raises(BackendError, match=r"272 model tokens of one sequence, its text counted, .* --tokens 24,48"):
        engine.submit(framert.Request(task="text_to_image", prompt="a", size=(64, 64), guidance=1.0))
