"""framert doctor: what it says of machines that have and lack things, and what auto chooses by."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from framert.runtime import cpu, doctor, gpus
from framert.runtime.backends import BACKENDS, choice
from framert.runtime.bundle import Bundle
from framert.runtime.cli import main
from framert.runtime.errors import BackendError
from framert.runtime.gpus import Gpu

ORIN = Gpu(name="Orin", compute_capability="8.7", memory_gib=64.0, cuda="12.6")
ADA = Gpu(name="RTX 4090", compute_capability="8.9", memory_gib=24.0, cuda="13.0")
OLD = Gpu(name="T4", compute_capability="7.5", memory_gib=16.0, cuda="12.4")


@pytest.fixture
def packages(monkeypatch):
    """Say which packages are installed."""

    def installed(*names):
        monkeypatch.setattr(doctor, "_versions", lambda *wanted: {one: "1.0" if one in names else "" for one in wanted})

    return installed


def test_every_backend_is_described():
    assert set(BACKENDS) <= set(doctor.ABILITIES)
    assert list(doctor.examine().backends) == list(BACKENDS)


@pytest.mark.parametrize("name", sorted(doctor.ABILITIES))
def test_a_missing_package_has_the_command_that_installs_it(name, packages):
    packages()
    ability = doctor.ABILITIES[name](set(), (ADA,))
    assert not ability.usable
    assert ability.fix.startswith("pip install 'framert[")
    assert "not installed" in ability.why


@pytest.mark.parametrize(
    ("features", "precisions"),
    [
        ({"avx2", "avx512f"}, ("fp32", "int8")),
        ({"avx512_bf16"}, ("fp32", "bf16", "int8")),
        ({"amx_bf16"}, ("fp32", "bf16", "int8")),
    ],
    ids=["no bf16", "avx512_bf16", "amx_bf16"],  # a set's own text changes its order from process to process
)
def test_openvino_has_bf16_where_the_cpu_has(features, precisions, packages):
    packages("openvino")
    ability = doctor.ABILITIES["openvino"](features, ())
    assert (ability.usable, ability.precisions) == (True, precisions)


@pytest.mark.parametrize(
    ("gpus", "usable", "fp8"),
    [((), False, False), ((OLD,), False, False), ((ORIN,), True, False), ((ADA,), True, True)],
)
def test_triton_needs_a_gpu(gpus, usable, fp8, packages):
    packages("torch", "triton", "onnx")
    ability = doctor.ABILITIES["triton"](set(), gpus)
    assert (ability.usable, "fp8" in ability.precisions) == (usable, fp8)


@pytest.mark.parametrize(
    ("installed", "made_for", "gpus", "usable", "says", "fix"),
    [
        (("tensorrt", "cuda.bindings"), None, (ORIN,), True, "tensorrt of this version built for sm_87", ""),
        (("tensorrt_rtx", "cuda.bindings"), 13, (ADA,), True, "tensorrt_rtx of this version built for sm_89", ""),
        (("tensorrt_rtx", "cuda.bindings"), 13, (), False, "builds engines, runs none", ""),
        (("tensorrt", "cuda.bindings"), None, (), False, "builds and runs none", ""),
        (("tensorrt_rtx",), None, (ADA,), False, "cuda.bindings not", "pip install 'framert[tensorrt-rtx]'"),
        (("tensorrt",), None, (ADA,), False, "cuda.bindings not installed", "pip install 'framert[tensorrt]'"),
        (("cuda.bindings",), None, (ADA,), False, "one of them is needed", "pip install 'framert[tensorrt]'"),
        (
            ("tensorrt", "cuda.bindings"), 13, (ORIN,), False,
            "made for CUDA 13, and the driver is for CUDA 12.6", "pip install tensorrt-cu12",
        ),
    ],
)  # fmt: skip
def test_tensorrt_says_what_it_runs_and_what_is_missing(
    installed, made_for, gpus, usable, says, fix, packages, monkeypatch
):
    packages(*installed)
    monkeypatch.setattr(doctor, "_cuda_of", lambda _: made_for)
    monkeypatch.setattr(doctor, "has_nvidia_device", lambda: False)
    ability = doctor.ABILITIES["tensorrt"](set(), gpus)
    assert (ability.usable, ability.fix) == (usable, fix)
    assert says in ability.why


@pytest.mark.parametrize(
    ("installed", "fix"),
    [
        ((), "sudo apt-get install -y python3-libnvinfer"),
        (("tensorrt",), "pip install 'cuda-python==12.*'"),
        (("tensorrt", "cuda.bindings"), ""),
    ],
    ids=["nothing", "tensorrt", "all"],
)
def test_a_jetson_takes_tensorrt_from_jetpack(installed, fix, packages, monkeypatch, tmp_path):
    packages(*installed)
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\n")
    assert doctor.is_jetson(tmp_path / "nv_tegra_release")
    monkeypatch.setattr(doctor, "is_jetson", lambda: True)
    monkeypatch.setattr(doctor, "_cuda_of", lambda _: None)
    assert doctor.ABILITIES["tensorrt"](set(), (ORIN,)).fix == fix


@pytest.mark.parametrize(
    ("gpu", "has", "lacks"),
    [(OLD, {"fp16", "int8"}, {"bf16", "fp8"}), (ORIN, {"bf16", "int4"}, {"fp8"}), (ADA, {"fp8"}, {"fp4"})],
    ids=["T4", "Orin", "Ada"],
)
def test_tensorrt_has_the_precisions_of_the_gpu(gpu, has, lacks, packages, monkeypatch):
    packages("tensorrt", "cuda.bindings")
    monkeypatch.setattr(doctor, "_cuda_of", lambda _: None)
    precisions = set(doctor.ABILITIES["tensorrt"](set(), (gpu,)).precisions)
    assert has <= precisions
    assert not lacks & precisions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24\nGCC version: 13.3.0\n", "575.57.08"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "540.4.0"),
        ("nothing of the kind\n", ""),
    ],
)
def test_the_drivers_version_is_read(text, version, tmp_path):
    (tmp_path / "version").write_text(text)
    assert gpus.driver_version(tmp_path / "version") == version
    assert gpus.driver_version(tmp_path / "none") == ""


def test_a_gpu_without_a_driver_is_told_of(packages, monkeypatch, tmp_path):
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x040300\n")
    assert not doctor.has_nvidia_device(tmp_path)  # its sound
    (device / "class").write_text("0x030200\n")
    assert doctor.has_nvidia_device(tmp_path)
    packages("tensorrt")
    monkeypatch.setattr(doctor, "has_nvidia_device", lambda: True)
    ability = doctor.ABILITIES["tensorrt"](set(), ())
    assert not ability.usable
    assert "no driver for it" in ability.why
    assert ability.fix == "sudo ubuntu-drivers install"


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch):
    monkeypatch.setattr(gpus, "CUDA_LIBRARY", {sys.platform: "no-such-library"})
    assert doctor.find_gpus() == ()
    monkeypatch.setattr(gpus, "CUDA_LIBRARY", {})
    assert doctor.find_gpus() == ()


def test_cpu_is_described():
    assert cpu.cpu_cores() >= 1
    assert cpu.cpu_name()
    assert cpu.cpu_features() <= set(cpu.FEATURES)


def test_command_prints_json_and_text(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["onnxruntime"]["usable"] is True
    assert report["cores"] >= 1
    assert main(["doctor"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_no_usable_backend_is_exit_code_one(packages, capsys):
    packages()
    assert main(["doctor"]) == 1
    assert "pip install 'framert[cpu]'" in capsys.readouterr().out


def test_record_needs_a_bundle(capsys):
    assert main(["doctor", "--record"]) == 2
    assert "--record" in capsys.readouterr().err


def with_record(bundle, error):
    verified = {"backends": {"openvino:bf16": {"velocity_error": error}}}
    return replace(bundle, manifest=replace(bundle.manifest, verified=verified))


@pytest.fixture
def bundle(golden_bundle):
    return Bundle.open(golden_bundle, check_files=False)


@pytest.fixture
def machine(monkeypatch):
    """Say what auto finds on this machine."""

    def set_up(features, *installed):
        monkeypatch.setattr(choice, "cpu_features", lambda: set(features))
        monkeypatch.setattr(choice, "find_spec", lambda name: name in installed or None)

    return set_up


BOTH = ("onnxruntime", "openvino")


@pytest.mark.parametrize(
    ("features", "installed", "error", "chosen", "says"),
    [
        ({"avx512_bf16"}, BOTH, 0.01, ("openvino", "bf16"), "avx512_bf16"),
        ({"avx512_bf16"}, BOTH, 0.2, ("onnxruntime", None), "0.2 off"),
        ({"avx512_bf16"}, BOTH, float("nan"), ("onnxruntime", None), "nan off"),
        ({"avx2"}, BOTH, 0.01, ("onnxruntime", None), "no bfloat16"),
        ({"avx512_bf16"}, ("onnxruntime",), 0.01, ("onnxruntime", None), "openvino is not installed"),
        ({"avx512_bf16"}, ("openvino",), 0.01, ("openvino", None), "onnxruntime is not installed"),
    ],
)
def test_auto_takes_what_was_verified_and_says_why(bundle, machine, features, installed, error, chosen, says):
    machine(features, *installed)
    found = choice.choose(with_record(bundle, error))
    assert (found.backend, found.precision) == chosen
    assert says in found.reason


@pytest.mark.parametrize("verified", [{}, {"backends": None}, {"backends": {"openvino:bf16": {}}}], ids=str)
def test_auto_does_not_take_what_was_never_compared(bundle, machine, verified):
    machine({"avx512_bf16"}, *BOTH)
    found = choice.choose(replace(bundle, manifest=replace(bundle.manifest, verified=verified)))
    assert (found.backend, found.precision) == ("onnxruntime", None)
    assert "--record" in found.reason


@pytest.mark.parametrize(
    ("kind", "backend"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt"), ("onnx", "onnxruntime")]
)
def test_without_a_name_the_backend_is_what_the_bundle_was_made_for(bundle, monkeypatch, kind, backend):
    """Whatever is installed: what is missing is then said by that backend, never replaced."""
    from framert.runtime import backends, pipeline

    made = replace(bundle, manifest=replace(bundle.manifest, target={"kind": kind}))
    asked = []
    monkeypatch.setattr(pipeline.Bundle, "open", lambda *_, **__: made)
    monkeypatch.setattr(backends, "create", lambda name, *_, **__: asked.append(name) or SimpleNamespace(name=name))
    monkeypatch.setattr(pipeline, "Components", lambda *_: None)
    monkeypatch.setattr(pipeline.Pipeline, "engine", lambda self: None)
    assert pipeline.load(bundle.path).backend_name == backend
    assert asked == [backend]
    assert kind in pipeline.load(bundle.path).backend_reason or kind == "onnx"


def test_auto_without_any_backend_is_refused(bundle, machine):
    machine(set())
    with pytest.raises(BackendError, match=r"framert\[cpu\]"):
        choice.choose(bundle)


def test_a_backend_that_cannot_run_the_bundle_is_told_of(golden_bundle, tmp_path, capsys, monkeypatch):
    """The comparison goes on, its record says so, and auto does not take that backend."""
    import shutil

    from framert.runtime import backends

    pytest.importorskip("openvino")
    create = backends.create

    def refuse(name, bundle, **options):
        if name == "openvino":
            raise BackendError("openvino cannot load it")
        return create(name, bundle, **options)

    monkeypatch.setattr(backends, "create", refuse)
    monkeypatch.setattr("framert.runtime.doctor.cpu_features", lambda: {"avx512_bf16"})
    copy = shutil.copytree(golden_bundle, tmp_path / "copy.bundle")
    assert main(["doctor", str(copy), "--record", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("openvino cannot load it" in line for line in lines) == 2  # fp32 and bf16
    recorded = Bundle.open(copy).manifest.verified["backends"]
    assert recorded["openvino:bf16"]["velocity_error"] is None
    assert recorded["onnxruntime"]["seconds"] > 0
    monkeypatch.setattr(choice, "cpu_features", lambda: {"avx512_bf16"})
    found = choice.choose(Bundle.open(copy))
    assert (found.backend, found.reason) == ("onnxruntime", "openvino refused this bundle: openvino cannot load it")


def test_a_comparison_is_recorded_and_auto_reads_it(golden_bundle, tmp_path, capsys):
    pytest.importorskip("openvino")
    import shutil

    import framert

    copy = shutil.copytree(golden_bundle, tmp_path / "copy.bundle")
    before = Bundle.open(copy).manifest
    assert main(["doctor", str(copy), "--record", "--threads", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["bundle"]
    after = Bundle.open(copy).manifest
    assert replace(after, verified={}) == replace(before, verified={})
    assert after.verified["backends"].keys() == shown.keys()
    assert after.verified["backends"]["openvino:fp32"]["velocity_error"] < 1e-5
    pipe = framert.load(copy, backend="auto")
    half = np.isfinite(shown.get("openvino:bf16", {"velocity_error": np.inf})["velocity_error"])
    assert pipe.backend_name == ("openvino" if half else "onnxruntime")
    assert pipe.backend_reason


@pytest.mark.parametrize(
    ("lists", "expected"),
    [({0: "0", 1: "1"}, 2), ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 2), ({0: "0-1", 1: "0-1"}, 1), ({0: "0"}, 2)],
    ids=["no siblings", "two threads a core", "one core", "a file missing"],
)
def test_logical_cores_of_one_physical_core_count_once(lists, expected, tmp_path, monkeypatch):
    allowed = set(lists) | {1}
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: allowed, raising=False)
    for core, text in lists.items():
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    assert cpu.physical_cores(tmp_path) == expected
