"""What is larger than engines were built for: refused when it is asked, with the command that builds larger ones."""

import re

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import framert
from framert.runtime.backends.tensorrt.rebuild import rebuild_command
from framert.runtime.bundle import Bundle
from framert.runtime.cli import parser
from framert.runtime.errors import BackendError

CUBE = {"task": "text_to_image", "prompt": "a red cube", "size": (64, 64), "steps": 2, "guidance": 3.0}


def rebuild(path):
    return f"framert build ONNX_BUNDLE -o {path} --force --backend tensorrt --target sm_89"


def test_a_device_without_room(machine, engine_bundle, refuses):
    machine(memory=1 << 13)
    refuses(engine_bundle, "no room for", "MiB asked for", "CUDA_ERROR_OUT_OF_MEMORY", "low_memory=True")


def test_running_out_of_room_between_requests_leaves_the_others(machine, engine_bundle):
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    exact = pipe.run(**CUBE).latents
    made.cuda.total = made.cuda.used + 1024
    with pytest.raises(BackendError, match="no room for"):
        pipe.run(**{**CUBE, "size": (64, 32)})
    made.cuda.total = 1 << 30
    np.testing.assert_array_equal(pipe.run(**CUBE).latents, exact)


def orbit(views):
    return framert.Cameras.orbit([0] * views, [20] * views, [3] * views)


# the engines: tokens 64 and 256, sequences 8, side 64; windows of half a bucket in 3 sequences, of a quarter in 8
@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"size": (128, 64)}, "vae_decoder was asked for 16 latent pixels wide, and is built for 2 to 8"),
        ({"size": (64, 128)}, "latent pixels high, and is built for 2 to 8"),
        (
            {"task": "text_to_multiview", "guidance": 3.0, "cameras": orbit(9)},
            "denoiser was asked for 576 model tokens, guidance branches counted, and is built for 1 to 256",
        ),
        (
            {"task": "text_to_multiview", "guidance": 1.0, "cameras": orbit(6)},
            "denoiser was asked for 192 model tokens of one sequence, and is built for 1 to 128",
        ),
    ],
    ids=["wide", "high", "tokens", "one sequence"],
)  # fmt: skip
def test_a_request_outside_the_profiles_is_refused_when_it_is_submitted(request_, says, machine, engine_bundle):
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    with pytest.raises(BackendError, match=re.escape(says)) as caught:
        pipe.run(**{**CUBE, **request_})
    assert rebuild(engine_bundle) in str(caught.value)
    assert not made.trt["tensorrt"].calls  # before anything is computed


@pytest.mark.parametrize(
    ("axis", "size", "options"),
    [
        ("", 0, "--tokens 64,256 --side 64"),
        ("tokens", 300, "--tokens 64,256,300 --side 64"),
        ("longest", 300, "--tokens 64,256,600 --side 64"),
        ("sequences", 9, "--tokens 64,256 --side 64 --sequences 9"),
        ("capacity", 9000, "--tokens 64,256 --side 64 --text 9000"),
        ("width", 65, "--tokens 64,256 --side 80"),
        ("latent_height", 11, "--tokens 64,256 --side 96"),
    ],
)
def test_the_command_builds_what_was_built_with_one_size_made_larger(axis, size, options, engine_bundle):
    command = rebuild_command(Bundle.open(engine_bundle), axis=axis, size=size).split(": ", 1)[1]
    assert command == f"{rebuild(engine_bundle)} {options}"
    given = parser.parse(command.split()[1:])  # and the command line takes it
    assert given.output == str(engine_bundle)


@pytest.mark.parametrize(
    ("built", "target", "words"),
    [
        ({"weight_streaming": True}, {}, ["--weight-streaming"]),
        ({"compatible": "version"}, {}, ["--compatible", "version"]),
        ({}, {"attention": "aot", "kernels": "sm_89:0"}, ["--attention", "aot"]),
        (
            {}, {"attention": "library", "plugins": "KernelLauncher"},
            ["--attention", "library", "--plugin-library", "libframert_plugin.so"],
        ),
        ({"capacity": {"tokens": None, "rows": 4096}}, {"compute_capability": "sm_86,sm_89"}, ["--target", "sm_86"]),
    ],
    ids=["streaming", "compatible", "aot", "library", "targets"],
)  # fmt: skip
def test_the_command_repeats_how_it_was_built(built, target, words, copy):
    command = rebuild_command(Bundle.open(copy(built=built, **target), check_files=False)).split(": ", 1)[1].split()
    places = [index for index in range(len(command)) if command[index : index + len(words)] == words]
    assert len(places) == 1
    assert "None" not in command


def test_buckets_are_added_to_the_usual_ones_and_stay_few(copy):
    bundle = Bundle.open(copy(built={"capacity": {"tokens": [1, 2, 3, 4, 5]}}), check_files=False)
    assert "--tokens 2,3,4,5,9" in rebuild_command(bundle, axis="tokens", size=9)
    bundle = Bundle.open(copy(built={"capacity": {"tokens": None}}), check_files=False)
    native = (bundle.manifest.native_side // bundle.manifest.model.multiple) ** 2
    assert f"--tokens {2 * native},{4 * native},{16 * native},{20 * native}" in rebuild_command(
        bundle, axis="tokens", size=20 * native
    )


def test_a_picture_too_large_for_the_encoder(machine, engine_bundle):
    machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    picture = np.zeros((128, 128, 3), np.uint8)
    says = "vae_encoder was asked for 128 pixels high, and is built for 16 to 64; .* --side 128"
    with pytest.raises(BackendError, match=says):
        pipe.run("image_to_depth", images=[picture], size=(128, 128))


def test_a_pack_outside_the_profiles_is_not_made(machine, engine_bundle):
    """Five guided requests are ten sequences; the engines take eight with padding. Each still gets its picture."""
    made = machine()
    pipe = framert.load(engine_bundle, backend="tensorrt")
    requests = [framert.Request(**{**CUBE, "size": (32, 32), "seed": seed}) for seed in range(5)]
    exact = [pipe.engine().submit(request).result().latents for request in requests]
    engine = pipe.engine()
    before = len(made.trt["tensorrt"].calls)
    tickets = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    for ticket, latents in zip(tickets, exact, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, latents)
    packs = {shapes["q_range"][0] for graph, _, shapes in made.trt["tensorrt"].calls[before:] if graph == "denoiser"}
    assert packs == {7, 5}  # three requests with padding, then two


def test_arenas_stay_within_the_profiles(machine, golden_bundle, build_engines, tmp_path, refuses):
    """A prompt that nobody holds makes room; what is held at once and does not fit is refused alone."""
    from framert.runtime.profiles import Capacity

    machine()
    capacity = Capacity(
        tokens=(64,), sequences=8, side=64, rows=8, text=Bundle.open(golden_bundle).manifest.prompt_tokens
    )
    path = build_engines(golden_bundle, tmp_path / "b", capacity=capacity)
    pipe = framert.load(path, backend="tensorrt")
    for number in range(4):  # each takes 3 rows for each branch
        pipe.run(**{**CUBE, "prompt": f"number {number}"})
    says = r"denoiser was asked for 10 modulation rows, and is built for 1 to 8; .* --rows 10 "
    with pytest.raises(BackendError, match=says):
        pipe.run(**{**CUBE, "steps": 5})
    pipe.run(**CUBE)
