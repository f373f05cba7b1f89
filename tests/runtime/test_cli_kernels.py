"""``framert kernels``: what it prints and writes, and what it refuses before it compiles anything."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.aot import build
from framert.kernels.aot.compiler import Compiled
from framert.kernels.specialization import ModelShape
from framert.runtime.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = json.loads((ROOT / "tests/golden/checkpoint/transformer/config.json").read_text())


def fake(job):
    """A kernel as the compiler would return it."""
    return Compiled(
        op=job.op,
        model=job.shape.name,
        name=job.name,
        target=job.target.name,
        entry="_kernel",
        arguments=(("x_ptr", "*bf16"), ("n", "i32")),
        divisible=("x_ptr",),
        constants={"BLOCK": 128, "QUANTIZE": None},
        grid=("n", "1", "1"),
        warps=4,
        stages=1,
        shared_memory=2048,
        registers=40,
        spills=0,
        architecture=job.target.name,
        ptx_version=job.target.ptx_version,
        kernel_hash=hashlib.sha256(job.name.encode()).hexdigest(),
        triton="3.9.0",
        ptxas="12.9.86",
        ptx=f"// {job.name}\n",
        cubin=job.name.encode(),
    )


@pytest.fixture
def compiles(monkeypatch):
    """Let nothing be compiled: kernels are two of the real ones, and compiling makes up its results."""
    seen = []

    def compile_all(jobs, *, processes=None, done):
        seen.extend(jobs)
        results = [fake(job) for job in jobs]
        for result in results:
            done(result)
        return results

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(build, "OPS", ("update", "swiglu"))
    monkeypatch.setattr(build, "compile_all", compile_all)
    return seen


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main(["kernels", *(str(word) for word in words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_table_for_people(call, compiles):
    code, out, err = call("--target", "sm_87", "--quiet")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "sm_87: Jetson Orin; JetPack 6, CUDA 12.6, PTX 8.5, shared memory up to 163 KiB"
    assert lines[1].split() == ["kernel", "threads", "registers", "spills", "shared", "KiB"]
    assert len(lines) == 2 + len(compiles)
    assert {line.split()[0] for line in lines[2:]} == {"published", "blocks"}
    assert all(line.split()[2:] == ["128", "40", "0", "2.0"] for line in lines[2:])


def test_progress_goes_to_stderr(call, compiles):
    code, out, err = call("--target", "sm_87", "--json")
    assert code == 0
    assert "compile" in err
    assert f"{len(compiles)}/{len(compiles)}" in err
    json.loads(out)


def test_json_is_one_object_per_target(call, compiles):
    code, out, _ = call("--target", "sm_87", "--json", "--quiet")
    content = json.loads(out)
    assert code == 0
    assert (content["target"], content["capability"], content["triton"]) == ("sm_87", 87, "3.9.0")
    assert [kernel["name"] for kernel in content["kernels"]] == [job.name for job in compiles]
    kernel = content["kernels"][0]
    assert {"name", "registers", "spills", "shared_memory", "grid", "block", "sha256"} <= set(kernel)
    assert (kernel["scratch"], kernel["hidden_parameters"]) == (0, 0)
    assert kernel["arguments"][0] == {"name": "x_ptr", "type": "*bf16", "divisible_by_16": True}
    several = json.loads(call("--target", "sm_87", "--target", "sm_110", "--json", "--quiet")[1])
    assert [item["target"] for item in several] == ["sm_87", "sm_110"]


def test_dtype_and_kinds_reach_the_plan(call, compiles):
    call("--target", "sm_90", "--dtype", "fp16", "--quantized", "fp8", "--quiet")
    names = [job.name for job in compiles]
    assert {job.dtype for job in compiles} == {"fp16"}
    assert any("fp8" in name for name in names)
    assert not any("int8" in name for name in names)


def test_a_folder_of_kernels(call, compiles, tmp_path):
    folder = tmp_path / "new" / "kernels"
    words = ("--target", "sm_87", "--target", "sm_90", "-o", folder, "--quiet")
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["kind"], manifest["dtype"]) == (1, "kernels", "bf16")
    listed = set()
    for target in manifest["targets"]:
        for kernel in target["kernels"]:
            for suffix in ("ptx", "cubin"):
                file = folder / kernel[suffix]["file"]
                assert file.name.startswith(f"{target['target']}-{kernel['model']}-{kernel['name']}.")
                assert hashlib.sha256(file.read_bytes()).hexdigest() == kernel[suffix]["sha256"]
                listed.add(file.name)
    assert listed == {file.name for file in folder.iterdir()} - {"manifest.json"}
    assert len(listed) == 2 * len(compiles)

    before = len(compiles)
    code, _, err = call(*words)
    assert (code, len(compiles)) == (2, before)
    assert "exists; give another -o, or --force to replace it" in err
    assert call("--target", "sm_80", "-o", folder, "--force", "--quiet")[0] == 0
    assert {file.name.split("-")[0] for file in folder.iterdir()} == {"sm_80", "manifest.json"}


def test_other_folders_are_never_replaced(call, compiles, tmp_path, golden_bundle):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, golden_bundle):
        code, _, err = call("--target", "sm_87", "-o", path, "--force", "--quiet")
        assert (code, compiles) == (2, [])
        assert "is not a folder of kernels, so it is not replaced" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_of_a_failed_write(call, compiles, tmp_path, monkeypatch):
    from framert.kernels.aot import report

    def fail(folder, kernels):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_folder", fail)
    code, _, err = call("--target", "sm_87", "-o", tmp_path / "a" / "kernels", "--quiet")
    assert code == 2
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_spills_are_a_failed_check(call, compiles, monkeypatch):
    monkeypatch.setattr(build, "compile_all", lambda jobs, done: [replace(fake(jobs[0]), spills=16)])
    code, out, err = call("--target", "sm_87", "--quiet")
    assert code == 1
    assert err.endswith("on sm_87 spills 16 bytes per thread\n")
    assert " 16 " in out


def test_a_bundle_gives_the_shape(call, compiles, golden_bundle):
    code, out, _ = call(golden_bundle, "--target", "sm_87", "--json", "--quiet")
    shape = compiles[0].shape
    assert code == 0
    assert {job.shape for job in compiles} == {shape}
    heads, hidden = CONFIG["num_heads"], CONFIG["hidden_size"]
    assert isinstance(shape, ModelShape)
    assert (shape.hidden, shape.depth, shape.heads, shape.head_dim) == (hidden, CONFIG["depth"], heads, hidden // heads)
    assert (shape.softcap, shape.guidance_branches, shape.norm_eps) == (30.0, 4, CONFIG["norm_eps"])
    from safetensors import safe_open

    (weights,) = (ROOT / "tests/golden/checkpoint/transformer").glob("*.safetensors")
    with safe_open(weights, "pt") as tensors:
        assert [shape.ffn, hidden] == tensors.get_slice("layers.0.feed_forward.w1.weight").get_shape()
    assert {kernel["model"] for kernel in json.loads(out)["kernels"]} == {shape.name}


def test_a_bundle_of_another_step_is_refused(call, compiles, tmp_path, univg_bundle):
    """Not given the kernels of OneDiffusion's step, none of which it runs."""
    code, out, err = call(univg_bundle, "--target", "sm_87", "--quiet", "-o", tmp_path / "kernels")
    assert (code, out, compiles) == (2, "", [])
    assert err.count("\n") == 1
    assert "has its text inside the sequences" in err
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --target; framert kernels --help"),
        (["--target", "sm_88"], "unknown target 'sm_88'; choose one of sm_80, sm_86, sm_87, sm_89, sm_90, sm_100, sm_"),
        (["--target", "sm_87", "--quantized", "fp8"], "fp8 kernels need compute capability 8.9 or newer, which sm_87"),
        (["--target", "sm_87", "--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["nothing.bundle", "--target", "sm_87"], "no bundle at nothing.bundle"),
        (["--target", "sm_87", "--out", "x"], "unrecognized arguments: --out (did you mean --output?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_calls_are_one_line_and_exit_2(call, compiles, words, message):
    code, out, err = call(*words)
    assert (code, out, compiles) == (2, "", [])
    assert err.startswith("framert: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_the_interpreter_is_refused(call, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code, out, err = call("--target", "sm_87", "--quiet")
    assert (code, out) == (2, "")
    assert "TRITON_INTERPRET is set" in err


def test_a_missing_package_is_named(call, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    code, _, err = call("--target", "sm_87", "--quiet")
    assert code == 2
    assert "needs triton, which is not installed; pip install 'framert[triton]'" in err


SMALL = """
import sys
from framert.kernels.aot import build
build.OPS = ("update",)
from framert.runtime.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_bundles_kernels_compile(golden_bundle, tmp_path):
    """The whole way once, for the smallest op: bundle to PTX and cubin on disk."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folder = tmp_path / "kernels"
    words = ["kernels", golden_bundle, "--target", "sm_87", "--target", "sm_110", "-o", folder, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", SMALL, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert not done.returncode, done.stderr
    for target, version in zip(json.loads(done.stdout), ("8.5", "9.0"), strict=True):
        assert int(target["ptxas"].split(".")[0]) <= {"8.5": 12, "9.0": 13}[version]  # a newer one's is refused there
        for kernel in target["kernels"]:
            stem = f"{target['target']}-{kernel['model']}-{kernel['name']}"
            text = (folder / f"{stem}.ptx").read_text()
            assert f".version {version}\n" in text
            assert f".target {kernel['architecture']}" in text
            assert text.count(".param .") == len(kernel["arguments"])
            assert (folder / f"{stem}.cubin").read_bytes()[:4] == b"\x7fELF"
            assert (kernel["spills"], kernel["ptx_version"]) == (0, version)
