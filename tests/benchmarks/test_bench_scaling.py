"""The scaling benchmark, whole, on a small model; and the arithmetic its roofline counts."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from framert.runtime.bench.rows import Environment

ROOT = Path(__file__).resolve().parents[2]
TINY = {"depth": 2, "width": 96, "heads": 4, "kv_heads": 1, "text": 5, "text_width": 24}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_scaling")


def test_work_counts_products_with_weights_and_attention(bench: ModuleType) -> None:
    case = bench.bench_step.Case(**TINY)
    work = bench.Work.of(case, 3, 2, 4, case.text, 1e6)
    tokens, kv_width, ffn = 32, 24, 256
    layer = 96 * (96 + kv_width + kv_width + 96) + 3 * 96 * ffn
    assert work.weights == 2 * 3 * tokens * 2 * layer
    assert work.attention == 3 * 2 * (2 * 2 * 96 * tokens * (tokens + 5))


def test_roofline_is_the_slower_of_arithmetic_and_reading(bench: ModuleType) -> None:
    work = bench.Work(weights=6e9, attention=2e9, size=1e9)
    assert work.bound(bench.Rates(flops=4e9, read=1e9)) == 2
    assert work.bound(bench.Rates(flops=16e9, read=1e9)) == 1


@pytest.mark.slow
def test_every_shape_has_its_rows(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure_rates", lambda threads, folder: bench.Rates(flops=1e12, read=1e12))
    environment = Environment.capture(ROOT, threads=1, record=False)
    lines: list[str] = []
    rows = bench.measure(bench.bench_step.Case(**TINY), ((1, 1, 4), (2, 1, 4)), environment, 2, lines.append)
    steps = {row.case: row for row in rows if row.metric == "step"}
    assert [case.partition("; ")[2] for case in steps] == [
        "16 tokens in 1 request of 1 frames", "32 tokens in 2 requests of 1 frames",
    ]  # fmt: skip
    assert all(row.n == 2 and row.p20 > 0 for row in steps.values())
    for case, step in steps.items():
        mine = {row.metric: row for row in rows if row.case == case}
        assert mine["rate_ratio"].p80 <= 1
        terms = sum(mine[name].p50 for name in ("products_with_weights", "attention", "glue"))
        assert 0 < terms <= step.p20  # the fastest step, taken apart
    assert len(lines) == 3
    assert all("limits" in line for line in lines[1:])
