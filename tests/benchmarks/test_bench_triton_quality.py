"""What backend triton's precisions cost: the benchmark's figures on the golden bundle, its rows and README's table."""

import csv
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from framert.runtime.bench.rows import RESULTS, Environment

ROOT = Path(__file__).resolve().parents[2]


def test_figures_become_rows_and_a_table(golden_bundle, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench, tables = import_module("bench_triton_quality"), import_module("tables")
    monkeypatch.setattr(bench, "GIVEN", {"image_to_depth": "picture", "text_to_image": None})
    monkeypatch.setattr(bench, "PRECISIONS", ("fp16", "fp8"))
    monkeypatch.setattr(bench, "REUSES", (2,))
    records = bench.compare(golden_bundle, scenes=1, steps=2, impl="reference")
    rows = bench.rows_of(records, Environment.capture(ROOT, threads=1, record=False), "golden, 1 scenes, 2 steps")
    found = {(row.impl, row.case.partition(";")[0], row.metric): row.p50 for row in rows}
    for level in bench.LEVELS:
        assert 0 < found["fp16", f"noise {level}", "velocity_error"] < found["fp8", f"noise {level}", "velocity_error"]
    for task in bench.GIVEN:
        assert found["fp16", task, "latents_psnr"] > found["fp8", task, "latents_psnr"] > 0
    # a task without a condition frame has nothing to reuse
    assert {case for impl, case, metric in found if "reuse" in impl} == {"image_to_depth", "all tasks"}

    assert tables.triton_table(tmp_path) == ""
    file = tmp_path / RESULTS / "triton_quality.csv"
    file.parent.mkdir(parents=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, asdict(rows[0]))
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    lines = tables.triton_table(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| fp16", "| fp8", "| fp32, reuse=2"]
    worst = min(found["fp8", task, "latents_psnr"] for task in bench.GIVEN)
    assert f"| {worst:.1f} dB |" in lines[3]
