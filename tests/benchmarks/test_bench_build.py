"""The build benchmark on one small engine: rows of every graph, and the peak memory of a process of its own."""

from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")

from framert.runtime.bench.rows import Environment
from framert.runtime.bundle import GRAPHS
from framert.runtime.errors import ConfigError
from framert.runtime.profiles import Capacity

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_build")


@pytest.mark.slow
def test_rows_of_a_build(bench: ModuleType, tmp_path: Path) -> None:
    environment = Environment.capture(ROOT, threads=1, record=False)
    bundle = bench._blocks(tmp_path, "fp16")
    rows = bench.measure(
        bundle, "blocks", "sm_89", "fp16", environment,
        backend="tensorrt-rtx", attention="padded", capacity=Capacity(tokens=(64,), sequences=2), rounds=1,
    )  # fmt: skip
    by_key = {(row.case.split()[-1], row.metric): row for row in rows}
    for graph in GRAPHS:
        assert by_key[graph, "build"].p50 > 0
        assert by_key[graph, "engine"].unit == "MiB"
    assert by_key["all", "build"].p50 == pytest.approx(sum(by_key[graph, "build"].p50 for graph in GRAPHS))
    engines = sum(by_key[graph, "engine"].p50 for graph in GRAPHS)
    assert engines < by_key["all", "peak_memory"].p50 < 4096
    assert by_key["all", "plugins"].p50 == 0
    assert all(row.case.startswith("blocks fp16 sm_89 padded ") and row.tensorrt for row in rows)


@pytest.mark.parametrize(
    ("precision", "target", "attention", "backend", "found"),
    [
        ("fp8", "sm_86", "padded", "tensorrt-rtx", False),
        ("fp8", "sm_120", "padded", "tensorrt-rtx", True),
        ("int4", "sm_75", "padded", "tensorrt-rtx", False),
        ("as-is", "sm_75", "plugin", "tensorrt-rtx", True),
        ("fp16", "sm_89", "aot", "tensorrt-rtx", False),
        ("fp16", "sm_89", "aot", "tensorrt", True),
    ],
)
def test_what_does_not_exist_is_left_out(
    bench: ModuleType, precision: str, target: str, attention: str, backend: str, found: bool
) -> None:
    assert bench.exists(precision, [target], attention, backend) is found


def test_a_refusal_crosses_the_process(bench: ModuleType, tmp_path: Path) -> None:
    environment = Environment.capture(ROOT, threads=1, record=False)
    with pytest.raises(ConfigError, match="unknown target 'sm_88'"):
        bench.measure(
            tmp_path,
            "none",
            "sm_88",
            "as-is",
            environment,
            backend="tensorrt-rtx",
            attention="padded",
            capacity=Capacity(),
            rounds=1,
        )


def test_rows_of_the_full_size_script_on_a_small_model(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    full = import_module("bench_build_full")
    small = {"hidden_size": 96, "num_heads": 4, "num_kv_heads": 2, "multiple_of": 32}
    monkeypatch.setattr(full, "WIDTHS", full.WIDTHS | small)
    monkeypatch.setattr(full, "alone", full._metered)  # a new process would not see the small widths
    options = SimpleNamespace(depth=2, target="sm_89", precision="fp16", attention="padded")
    rows = full.measure(options, tmp_path, Environment.capture(ROOT, threads=1, record=False))
    stages = [(row.case.split()[-1], row.metric) for row in rows]
    assert stages == [
        *((stage, metric) for stage in ("export", "cast", "engine") for metric in ("build", "peak_memory")),
        ("weights", "size"),
        ("engine", "engine"),
    ]
    weights, engine = (row.p50 for row in rows[-2:])
    assert 0 < weights < engine  # no two weights are alike, so each is in the engine
    assert all(row.p50 > 0 for row in rows)
