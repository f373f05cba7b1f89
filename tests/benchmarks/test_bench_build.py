"""The build benchmark on one small engine: rows of every graph, and the peak memory of a process of its own."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")

from framert.export.tensorrt.profiles import Capacity
from framert.runtime.bench.rows import Environment
from framert.runtime.bundle import GRAPHS
from framert.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_build")


@pytest.mark.slow
def test_rows_of_a_build(bench: ModuleType, tmp_path: Path) -> None:
    environment = Environment.capture(ROOT, threads=1, record=False)
    bundle = bench._unpack(tmp_path)
    rows = bench.measure(
        bundle, "blocks", "sm_89", "fp16", environment,
        backend="tensorrt-rtx", capacity=Capacity(tokens=(64,), sequences=2), rounds=1,
    )  # fmt: skip
    by_key = {(row.case.split()[-1], row.metric): row for row in rows}
    for graph in GRAPHS:
        assert by_key[graph, "build"].p50 > 0
        assert by_key[graph, "engine"].unit == "MiB"
    assert by_key["all", "build"].p50 == pytest.approx(sum(by_key[graph, "build"].p50 for graph in GRAPHS))
    engines = sum(by_key[graph, "engine"].p50 for graph in GRAPHS)
    assert engines < by_key["all", "peak_memory"].p50 < 4096
    assert all(row.case.startswith("blocks fp16 sm_89 ") and row.tensorrt for row in rows)


def test_a_refusal_crosses_the_process(bench: ModuleType, tmp_path: Path) -> None:
    environment = Environment.capture(ROOT, threads=1, record=False)
    with pytest.raises(ConfigError, match="unknown target 'sm_88'"):
        bench.measure(
            tmp_path, "none", "sm_88", None, environment, backend="tensorrt-rtx", capacity=Capacity(), rounds=1
        )
