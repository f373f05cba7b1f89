"""Kernels ahead of time: the table of ops and targets, PTX without hidden parameters, and what compiling gives.

Compiling itself happens in processes of its own, since Triton interprets in this one. test_aot_table.py compiles all.
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from framert.kernels.aot import build, compiler, ops, ptx, report  # noqa: E402
from framert.kernels.aot.compiler import Compiled  # noqa: E402
from framert.kernels.aot.targets import TARGETS, parse_targets  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError  # noqa: E402

ROOT = Path(__file__).parents[2]
CAPABILITIES = [target.capability for target in TARGETS.values()]
SHAPES = [ops.PUBLISHED, ops.BLOCKS]
SCALARS = {"i32"}  # all that TensorRT's plugins pass

PTX = """.version 8.5
.target sm_87
.address_size 64
.visible .entry _add_kernel(
\t.param .u64 .ptr .global .align 1 _add_kernel_param_0,
\t.param .u32 _add_kernel_param_1,
\t.param .u64 .ptr .global .align 1 _add_kernel_param_2,
\t.param .u64 .ptr .global .align 1 _add_kernel_param_3
)
.reqntid 128
{
\tld.param.b32 %r1, [_add_kernel_param_1];
\tret;
}
"""


def compiled(**changes):
    return replace(
        Compiled(
            op="add",
            model="blocks",
            name="add_bf16",
            target="sm_87",
            entry="_add_kernel",
            arguments=(("x_ptr", "*bf16"), ("n", "i32")),
            divisible=("x_ptr",),
            constants={"BLOCK": 128, "KIND": None},
            grid=("(n + BLOCK - 1) / BLOCK", "1", "1"),
            warps=4,
            stages=1,
            shared_memory=1024,
            registers=40,
            spills=0,
            architecture="sm_87",
            ptx_version=85,
            kernel_hash="0" * 64,
            triton="3.9.0",
            ptxas="12.9.86",
            ptx=PTX,
            cubin=b"\x7fELF",
        ),
        **changes,
    )


def run(*words, timeout=900):
    """Run this Python without the interpreter of kernels; returns the finished process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        cwd=ROOT,
    )


def test_every_kernel_is_in_the_table():
    assert sorted(ops.OPS) == sorted(path.parent.name for path in (ROOT / "kernels").glob("*/kernel.py"))
    assert len(set(ops.OPS)) == len(ops.OPS)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("op", ops.OPS)
def test_specializations_describe_their_kernels(op, shape, dtype):
    for capability in CAPABILITIES:
        found = ops.collect(op, shape, dtype, capability)
        assert found or dtype == "fp32"
        for item in found:
            types = dict(item.signature)
            assert list(types) == list(item.kernel.arg_names), item.name
            constexpr = {name for name, kind in types.items() if kind == "constexpr"}
            assert set(item.constants) == constexpr, item.name
            scalars = {kind for kind in types.values() if kind != "constexpr" and not kind.startswith("*")}
            assert scalars <= SCALARS, item.name
            assert item.divisible <= set(types) - constexpr, item.name
            assert "*fp8e4nv" not in types.values() or capability >= 89, item.name
            json.dumps(dict(item.constants))
            names = {name for name, kind in types.items() if kind == "i32"} | set(item.constants)
            for axis in item.grid:
                assert {node.id for node in ast.walk(ast.parse(axis)) if isinstance(node, ast.Name)} <= names, item.name
                assert re.fullmatch(r"[\w\s()+*/-]+", axis), f"{item.name}: {axis} is no C expression"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_names_are_unique_on_a_target(dtype, capability):
    for shape in SHAPES:
        names = [item.name for op in ops.OPS for item in ops.collect(op, shape, dtype, capability)]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


def test_shapes_are_the_models_own():
    config = json.loads((ROOT / "models/blocks/transformer/config.json").read_text())
    assert (ops.BLOCKS.hidden, ops.BLOCKS.depth) == (config["hidden_size"], config["depth"])
    assert (ops.BLOCKS.heads, ops.BLOCKS.kv_heads) == (config["num_heads"], config["num_kv_heads"])
    assert ops.BLOCKS.norm_eps == config["norm_eps"]
    for shape in SHAPES:
        assert shape.heads * shape.head_dim == shape.hidden


@pytest.mark.parametrize("names", [["sm_88"], ["87"], ["sm_87", "orin"]])
def test_unknown_targets_list_the_known(names):
    with pytest.raises(ConfigError, match="choose one of sm_80, sm_86, sm_87, sm_89, sm_90, sm_100, sm_110, sm_120"):
        parse_targets(names)


def test_targets_are_taken_once():
    assert [target.name for target in parse_targets(["sm_90", "sm_87", "sm_90"])] == ["sm_90", "sm_87"]
    with pytest.raises(ConfigError, match="no target"):
        parse_targets([])


def test_hidden_parameters_are_taken_off():
    found = ptx.entry(PTX)
    assert (found.name, len(found.parameters), found.architecture) == ("_add_kernel", 4, "sm_87")
    stripped = ptx.without_hidden(PTX, 2)
    assert ptx.entry(stripped).parameters == found.parameters[:2]
    assert stripped.replace("\n", "").endswith("ret;}")
    assert stripped.count(".reqntid 128") == 1
    assert "param_2" not in stripped


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (PTX, 3, r"has 4 parameters, 3 \+ 2 expected"),
        (PTX.replace("[_add_kernel_param_1]", "[_add_kernel_param_3]"), 2, "reads its hidden parameters _add_kernel_p"),
        (PTX + PTX, 2, "2 kernels and 2 targets"),
        ("", 0, "0 kernels"),
    ],
)
def test_ptx_that_is_not_understood_is_refused(text, arguments, message):
    with pytest.raises(ValueError, match=message):
        ptx.without_hidden(text, arguments)


def test_environments_that_cannot_compile_say_why(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match=r"TRITON_INTERPRET is set.*unset TRITON_INTERPRET"):
        build.plan(SHAPES, [TARGETS["sm_87"]])
    monkeypatch.delenv("TRITON_INTERPRET")
    assert compiler.check_environment() == triton.__version__
    missing = tmp_path / "ptxas"
    monkeypatch.setattr("triton.backends.nvidia.compiler.get_ptxas", lambda _: type("Tool", (), {"path": str(missing)}))
    with pytest.raises(BackendError, match=r"ptxas cannot be run; pip install 'framert\[triton\]'"):
        compiler.check_environment()

    def absent(_):
        raise RuntimeError("Cannot find ptxas")

    monkeypatch.setattr("triton.backends.nvidia.compiler.get_ptxas", absent)
    with pytest.raises(BackendError, match=r"needs ptxas.*Cannot find ptxas.*pip install 'framert\[triton\]'"):
        compiler.check_environment()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match=r"needs triton, which is not installed; pip install 'framert\[triton\]'"):
        compiler.check_environment()


def test_a_plan_holds_what_was_asked_for(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    everything = build.plan([ops.BLOCKS], [TARGETS["sm_90"]])
    plain = build.plan([ops.BLOCKS], [TARGETS["sm_90"]], quantized=[])
    assert not [job for job in plain if re.search("int8|fp8|weight_only", job.name)]
    for kind, other in (("int8", "fp8"), ("fp8", "int8")):
        names = [job.name for job in build.plan([ops.BLOCKS], [TARGETS["sm_90"]], quantized=[kind])]
        assert [name for name in names if kind in name]
        assert not [name for name in names if other in name]
        assert len(plain) < len(names) < len(everything)
    with pytest.raises(ConfigError, match=r"fp8 kernels need.*8\.9 or newer, which sm_80, sm_87 is not; it has int8"):
        build.plan(SHAPES, parse_targets(["sm_80", "sm_89", "sm_87"]), quantized=["fp8"])
    with pytest.raises(ConfigError, match="'fp4'; choose from int8, int4, fp8"):
        build.plan(SHAPES, [TARGETS["sm_120"]], quantized=["fp4"])


def test_problems_name_the_kernel():
    assert report.problems([compiled()]) == []
    found = report.problems(
        [compiled(spills=8), compiled(shared_memory=163 * 1024 + 1), compiled(target="sm_86", shared_memory=100 * 1024)]
    )
    assert found[0] == "blocks add_bf16 on sm_87 spills 8 bytes per thread"
    assert "needs 166913 bytes of shared memory, 166912 allowed" in found[1]
    assert "on sm_86 needs 102400 bytes of shared memory, 101376 allowed" in found[2]


def test_the_table_survives_its_file(tmp_path):
    kernels = [compiled(), compiled(target="sm_100"), compiled(name="a"), compiled(target="sm_90")]
    report.write_csv(tmp_path / "table.csv", report.rows(kernels))
    read = report.read_csv(tmp_path / "table.csv")
    assert [(row["target"], row["kernel"]) for row in read] == [
        ("sm_87", "a"),
        ("sm_87", "add_bf16"),
        ("sm_90", "add_bf16"),
        ("sm_100", "add_bf16"),
    ]
    assert sorted(map(str, read)) == sorted(map(str, report.rows(kernels)))
    assert list(read[0]) == list(report.COLUMNS)


COMPILE_ONE = """
import sys
from dataclasses import replace
from framert.kernels.aot import compiler, ops
from framert.kernels.aot.targets import TARGETS
item = ops.collect("quantize_rows", ops.BLOCKS, "bf16", 90)[0]
with compiler.compiling():
    first, second = (compiler.compile_kernel(item, TARGETS["sm_90"]) for _ in range(2))
    other = compiler.compile_kernel(replace(item, warps=item.warps * 2), TARGETS["sm_90"])
    orin = compiler.compile_kernel(item, TARGETS["sm_87"])
    try:
        compiler.assemble(first.ptx.replace("ret;", "nonsense;"), first.architecture, compiler._ptxas(80), "broken")
    except Exception as error:
        print(type(error).__name__, error)
assert (first.ptx, first.kernel_hash) == (second.ptx, second.kernel_hash)
assert len({first.kernel_hash, other.kernel_hash, orin.kernel_hash}) == 3
assert first.cubin[:4] == b"\\x7fELF" and first.cubin != other.cubin
assert (first.architecture, orin.architecture) == ("sm_90a", "sm_87")
assert ".version 8.5" in first.ptx
assert sys.argv[1] not in first.ptx, "PTX holds a path of this machine"
print(len(first.arguments), first.registers)
"""


def test_one_kernel_is_compiled_reproducibly():
    done = run("-c", COMPILE_ONE, ROOT)
    assert not done.returncode, done.stderr
    refusal, numbers = done.stdout.splitlines()
    assert refusal.startswith("BackendError ptxas refuses broken: ")
    arguments, registers = map(int, numbers.split())
    assert arguments == 6
    assert 0 < registers < 255


COMPILE_MANY = """
import os, sys, tempfile
from dataclasses import replace
from framert.kernels.aot import build, ops
from framert.kernels.aot.targets import parse_targets

if __name__ == "__main__":
    build.OPS = ("update", "quantize_rows")
    jobs = build.plan([ops.PUBLISHED, ops.BLOCKS], parse_targets(["sm_90", "sm_87"]))
    seen = []
    results = build.compile_all(jobs, processes=2, done=seen.append)
    assert len(jobs) >= 2 * build.PER_PROCESS, "one process would do"
    assert [(r.name, r.model, r.target) for r in results] == [(j.name, j.shape.name, j.target.name) for j in jobs]
    assert sorted(map(id, seen)) == sorted(map(id, results))
    assert all(r.kernel_hash == build.hash_of(j) for r, j in zip(results, jobs))
    jobs[3] = replace(jobs[3], target=replace(jobs[3].target, ptx_version=10))
    try:
        build.compile_all(jobs, processes=2)
    except Exception as error:
        print(type(error).__name__, error)
    print([name for name in os.listdir(tempfile.gettempdir()) if "framert" in name])
"""


@pytest.mark.slow
def test_processes_keep_the_order_report_a_refusal_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run("-c", COMPILE_MANY, timeout=300)
    assert not done.returncode, done.stderr
    refusal, left = done.stdout.splitlines()
    assert re.match(r"BackendError \w+ for sm_90 does not compile: .*error", refusal)
    assert "requires PTX ISA" in refusal
    assert left == "[]"
