"""Every kernel compiles for every target, and benchmarks/results/kernels_aot.csv says what became of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.kernels.aot import ops, report
from framert.kernels.aot.targets import TARGETS

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "kernels_aot.csv"
KEY = ("target", "model", "kernel")
NUMBERS = ("warps", "registers", "spills", "shared_memory")


@pytest.fixture(scope="module")
def committed():
    return {tuple(row[name] for name in KEY): row for row in report.read_csv(TABLE)}


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_as_the_committed_table_says(tmp_path, committed):
    """No spills, shared memory within limits; the same numbers where Triton is the one the table names.

    To keep CI short, fp16 and the shape of models/blocks are compiled on two targets, the rest on all eight.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [ROOT / "benchmarks" / "kernels_aot.py", "--quick", "-o", tmp_path / "table.csv"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert not done.returncode, done.stderr[-2000:]  # 1 where a kernel spills or does not fit
    actual = report.read_csv(tmp_path / "table.csv")
    assert {row["target"] for row in actual} == set(TARGETS)
    for row in actual:
        expected = committed[tuple(row[name] for name in KEY)]
        same = row["triton"] != expected["triton"] or all(row[name] == expected[name] for name in NUMBERS)
        assert same, f"{TABLE.name} says {expected}, compiled {row}; run python benchmarks/kernels_aot.py --changed"


def test_the_committed_table_holds_every_kernel(committed):
    expected = {
        (target.name, shape.name, item.name)
        for target in TARGETS.values()
        for shape in (ops.PUBLISHED, ops.BLOCKS)
        for dtype in ("bf16", "fp16")
        for op in ops.OPS
        for item in ops.collect(op, shape, dtype, target.capability)
    }
    assert set(committed) == expected, "run python benchmarks/kernels_aot.py --changed"


def test_no_kernel_of_the_committed_table_spills_or_is_too_large(committed):
    for row in committed.values():
        assert row["spills"] == "0", row
        assert int(row["shared_memory"]) <= TARGETS[row["target"]].shared_memory, row
        assert 0 < int(row["registers"]) <= 255, row
