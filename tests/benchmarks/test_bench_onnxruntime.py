"""The benchmark of ONNX Runtime's settings, whole, on a small model."""

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from framert.runtime.bench.rows import Environment

ROOT = Path(__file__).resolve().parents[2]
TINY = {"depth": 2, "width": 96, "heads": 4, "kv_heads": 1, "side": 4, "text": 5, "text_width": 24}


@pytest.mark.slow
def test_every_question_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = import_module("bench_onnxruntime")
    environment = Environment.capture(ROOT, threads=1, record=False)
    rows = bench.measure(bench.bench_step.Case(**TINY), environment, 1, lambda line: None)
    timed = {row.impl for row in rows if row.metric == "time"}
    assert set(bench.settings(1)) < timed
    ratios = {row.impl for row in rows if row.metric == "rate_ratio"}
    assert {"no_arena/default", "load_saved_basic/load_as_exported"} < ratios
    assert "attention/attention-torch-sdpa-without-softcap" in ratios
    assert [row.unit for row in rows if row.metric == "load_to_first_step"] == ["s"]
    assert all(row.p50 > 0 for row in rows)
