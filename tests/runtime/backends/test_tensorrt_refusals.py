"""What backend "tensorrt" refuses: one sentence each, with what was found, what is needed, and the command for it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import framert
from framert.runtime.backends.tensorrt import driver, library
from framert.runtime.backends.tensorrt.backend import TensorRtBackend
from framert.runtime.backends.tensorrt.rebuild import rebuild_command
from framert.runtime.bundle import Bundle, file_specs, write_manifest
from framert.runtime.cli import main, parser
from framert.runtime.errors import BackendError, BundleError

CUBE = {"task": "text_to_image", "prompt": "a red cube", "size": (64, 64), "steps": 2, "guidance": 3.0}
REBUILD = "framert build ONNX_BUNDLE -o {path} --force --backend {kind} --target {target}"


@pytest.fixture
def copy(engine_bundle, tmp_path):
    """A copy of the engines that a test may change; call it to write the manifest anew, with another target."""
    folder = Path(shutil.copytree(engine_bundle, tmp_path / "copy"))

    def change(*, built=None, **target):
        manifest = Bundle.open(folder, check_files=False).manifest
        origin = {**manifest.provenance, "built": {**manifest.provenance["built"], **(built or {})}}
        target = {name: value for name, value in {**manifest.target, **target}.items() if value is not None}
        write_manifest(folder, replace(manifest, target=target, files=file_specs(folder), provenance=origin))
        return folder

    change()
    return change


@pytest.fixture
def refuses():
    """Return a function that loads a bundle, checks that it is refused in one sentence, and returns that."""

    def check(bundle, *says, error=BackendError, **options):
        with pytest.raises(error) as caught:
            framert.load(bundle, backend="tensorrt", **options)
        message = str(caught.value)
        assert "\n" not in message
        for part in says:
            assert part in message
        return message

    return check


def rebuild(path, kind="tensorrt", target="sm_89"):
    return REBUILD.format(path=path, kind=kind, target=target)


@pytest.mark.parametrize(("capability", "target"), [((8, 6), "sm_86"), ((9, 0), "sm_90"), ((11, 0), "sm_110")])
def test_engines_of_another_gpu(capability, target, machine, engine_bundle, refuses):
    machine(capability)
    refuses(
        engine_bundle,
        f"was built for sm_89, and this GPU (Emulated GPU) is {target}",
        rebuild(engine_bundle, target=target),
    )


def test_several_targets_are_all_named(machine, copy, refuses):
    machine((12, 0))
    refuses(
        copy(compute_capability="sm_86,sm_89"), "was built for sm_86 and sm_89, and this GPU (Emulated GPU) is sm_120"
    )


def test_engines_for_every_gpu_from_ampere_on(machine, build_engines, golden_bundle, engine_bundle, copy):
    machine((9, 0))
    TensorRtBackend(Bundle.open(copy(built={"compatible": "ampere+"})))
    machine((7, 5))
    with pytest.raises(BackendError, match=r"this GPU .* is sm_75.*--compatible ampere"):
        TensorRtBackend(Bundle.open(copy()))


@pytest.mark.parametrize("version", ["10.13.2.6", "10.14.1.48", "11.4.0.106", "10.3.0"])
def test_engines_of_another_version(version, machine, engine_bundle, refuses):
    machine(version=version)
    refuses(
        engine_bundle,
        f"was built with tensorrt 10.13.3.9, and {version} is installed",
        "install tensorrt==10.13.3.9",
        rebuild(engine_bundle),
    )


def test_what_follows_a_versions_numbers_is_the_packages_own(machine, copy):
    machine(version="10.13.3.9")
    TensorRtBackend(Bundle.open(copy(version="10.13.3.9.post1")))


@pytest.mark.parametrize(
    ("version", "runs"), [("10.13.3.9", True), ("10.16.1.11", True), ("10.3.0", False), ("11.0.0.114", False)]
)
def test_engines_for_later_versions_of_the_same_major(version, runs, machine, copy):
    machine(version=version)
    bundle = Bundle.open(copy(built={"compatible": "version"}))
    if runs:
        TensorRtBackend(bundle)
    else:
        with pytest.raises(BackendError, match=r"--compatible version"):
            TensorRtBackend(bundle)


def test_graphs_that_were_not_built(machine, golden_bundle, refuses):
    machine()
    refuses(golden_bundle, "is of kind 'onnx'", f"framert build {golden_bundle} --target sm_NN -o ENGINES")


def test_engines_of_another_kind(machine, copy, refuses):
    machine()
    refuses(
        copy(kind="openvino"), "is of kind 'openvino', and backend 'tensorrt' runs kinds 'tensorrt' and 'tensorrt-rtx'"
    )


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("tensorrt", ModuleNotFoundError("No module named 'tensorrt'"), "pip install 'framert[tensorrt]'"),
        ("tensorrt-rtx", ModuleNotFoundError("No module named 'x'"), "pip install 'framert[tensorrt-rtx]'"),
        ("tensorrt", OSError("libnvinfer.so.10: cannot open shared object file"), "libnvinfer.so.10: cannot open"),
    ],
    ids=["tensorrt", "rtx", "library"],
)
def test_a_package_that_is_missing_or_does_not_load(kind, error, says, machine, copy, refuses, monkeypatch):
    machine()

    def missing(name):
        raise error

    monkeypatch.setattr(library, "import_module", missing)
    refuses(copy(kind=kind), f"a bundle of kind {kind!r} needs the package", says)


@pytest.mark.parametrize(("kind", "version"), [("tensorrt", "10.2.0.19"), ("tensorrt-rtx", "1.1.0")])
def test_a_package_that_is_too_old(kind, version, machine, copy, refuses):
    machine(version=version)
    refuses(copy(kind=kind), f"{version} is too old", "or newer is needed")


def test_cuda_python_is_missing(machine, engine_bundle, refuses, monkeypatch):
    machine()

    def missing(name):
        raise ModuleNotFoundError("No module named 'cuda'")

    monkeypatch.setattr(driver, "import_module", missing)
    refuses(engine_bundle, "needs the package cuda-python (No module named 'cuda'); pip install 'cuda-python>=12.8'")


def test_no_driver(machine, engine_bundle, refuses):
    made = machine()

    def fails(flags):
        raise RuntimeError("Failed to dlopen libcuda.so.1\nand more")

    made.cuda.cuInit = fails
    refuses(
        engine_bundle, "needs an NVIDIA GPU with its driver, and finds no driver (Failed to dlopen libcuda.so.1)",
        "nvidia-smi", "backend='onnxruntime'",
    )  # fmt: skip


def test_no_gpu(machine, engine_bundle, refuses):
    machine(devices=0)
    refuses(engine_bundle, "needs an NVIDIA GPU with its driver, and the driver says CUDA_ERROR_NO_DEVICE")


@pytest.mark.parametrize("damage", ["changed", "truncated", "empty", "another"])
def test_an_engine_that_is_not_what_was_built(damage, machine, copy, refuses):
    machine()
    folder = copy()
    engine = folder / "conditioner.engine"
    content = engine.read_bytes()
    damaged = {
        "changed": b"DAMAGED!" + content[8:],
        "truncated": content[:-10],
        "empty": b"",
        "another": (folder / "text_encoder.engine").read_bytes(),
    }[damage]
    engine.write_bytes(damaged)
    refuses(folder, "conditioner.engine", error=BundleError)  # by its hash
    says = {
        "changed": "cannot load", "truncated": "the engine is truncated", "empty": "cannot be read",
        "another": "is another engine (hidden_states is missing)",
    }[damage]  # fmt: skip
    refuses(folder, str(engine), says, rebuild(folder), check_files=False)


def test_an_engine_of_another_version_than_its_manifest_says(machine, copy, refuses):
    """TensorRT has the last word."""
    machine(version="10.14.1.48")
    folder = copy(version="10.14.1.48")
    refuses(folder, "expecting library version 10.13.3.9 got 10.14.1.48", rebuild(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table["denoiser"].pop(), "profiles, not"),
        (lambda table: table["denoiser"][0]["tokens"].__setitem__(2, 77), "profile 0 of source is (64,), not (77,)"),
        (lambda table: table.pop("conditioner"), "cannot be read"),
        (lambda table: table.update(denoiser=[]), "has no profile of denoiser"),
        (lambda table: table.update(denoiser=[{"tokens": "many"}]), "cannot be read"),
    ],
    ids=["one less", "other sizes", "a graph less", "none", "no numbers"],
)
def test_profiles_that_are_not_the_engines(change, says, machine, copy, refuses):
    machine()
    folder = copy()
    table = json.loads((folder / "profiles.json").read_text())
    change(table)
    (folder / "profiles.json").write_text(json.dumps(table))
    refuses(folder, says, rebuild(folder), check_files=False, error=(BackendError, BundleError))


def test_the_plugin_of_nobody(machine, copy, refuses):
    machine()
    refuses(copy(plugins="Other", kernels="sm_89:0123"), "need the plugin 'Other', which framert does not have")


def test_kernels_for_another_gpu(machine, copy, refuses):
    machine()
    folder = copy(plugins="FrameAttention", attention="plugin", kernels="sm_86:0123")
    refuses(folder, "holds attention kernels for sm_86, and this GPU (Emulated GPU) is sm_89", "--attention plugin")


def test_the_plugins_library_is_missing(machine, copy, refuses, monkeypatch):
    machine()
    monkeypatch.setenv("FRAMERT_PLUGIN_LIBRARY", "/nowhere/libframert_plugin.so")
    folder = copy(plugins="KernelLauncher", attention="library", kernels="sm_89:0123")
    refuses(folder, "plugin library /nowhere/libframert_plugin.so", "kernels/plugin/cpp", "FRAMERT_PLUGIN_LIBRARY")


def test_the_plugins_library_is_loaded_once(machine, copy, monkeypatch, tmp_path):
    made = machine()
    (tmp_path / "plugin.so").write_bytes(b"")
    monkeypatch.setenv("FRAMERT_PLUGIN_LIBRARY", str(tmp_path / "plugin.so"))
    folder = copy(plugins="KernelLauncher", attention="library", kernels="sm_89:0123")
    for _ in range(2):
        framert.load(folder, backend="tensorrt")
    assert made.trt["tensorrt"].libraries == [str(tmp_path / "plugin.so")]


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


def test_the_command_line_tells_it_in_one_line(machine, engine_bundle, tmp_path, capsys):
    machine((8, 6))
    words = [
        "run",
        str(engine_bundle),
        "text_to_image",
        "--prompt",
        "x",
        "--backend",
        "auto",
        "-o",
        str(tmp_path / "o.png"),
    ]
    assert main(words) == 2
    assert re.fullmatch(r"framert: error: .* was built for sm_89, .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(("capability", "code", "says"), [((8, 9), 0, "are for this machine"), ((8, 6), 1, "is sm_86")])
def test_doctor_says_whether_engines_fit(capability, code, says, machine, engine_bundle, capsys):
    made = machine(capability)
    assert main(["doctor", str(engine_bundle)]) == code
    assert says in capsys.readouterr().out.splitlines()[-1]
    assert main(["doctor", str(engine_bundle), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["engines"]["usable"] is (code == 0)
    assert made.trt["tensorrt"].engines == 0
    assert main(["doctor", str(engine_bundle), "--record"]) == 2
