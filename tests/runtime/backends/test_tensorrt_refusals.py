"""What backend "tensorrt" refuses: one sentence each, with what was found, what is needed, and the command for it."""

import json
import re

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import framert
from framert.runtime.backends.tensorrt import driver, library
from framert.runtime.backends.tensorrt.backend import TensorRtBackend
from framert.runtime.bundle import Bundle
from framert.runtime.cli import main
from framert.runtime.errors import BackendError, BundleError

REBUILD = "framert build ONNX_BUNDLE -o {path} --force --backend {kind} --target {target}"


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
