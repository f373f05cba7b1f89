"""The memory benchmark on a small configuration: a random checkpoint exports in low precision, runs, and is metered."""

import argparse
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from framert.runtime.bench.rows import Environment

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "transformer": {
        "hidden_size": 96, "depth": 1, "num_heads": 4, "num_kv_heads": 1, "caption_channels": 64, "in_channels": 16,
        "patch_size": [1, 2, 2], "multiple_of": 64, "norm_eps": 1e-5, "rotary_max_length": 32,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4},
    "text_encoder": {"num_layers": 1},
}  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = import_module("bench_memory")
    monkeypatch.setattr(module, "CONFIGS", TINY)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory counters")
def test_a_small_model_is_made_run_and_metered(bench: ModuleType, tmp_path: Path) -> None:
    options = argparse.Namespace(
        precision="denoiser=int4,text_encoder=int8", backend="onnxruntime", steps=1, threads=1, bundle=None, side=64
    )
    rows = bench.measure(options, Environment.capture(ROOT, threads=1, record=False), tmp_path)
    found = {row.metric: row.p50 for row in rows}
    parts = {"text_encoder", "vae_encoder", "conditioner", "denoiser", "vae_decoder"}
    assert {f"peak_resident_{part}" for part in parts} <= set(found)
    assert 0.02 < found["peak_anonymous"] < found["peak_resident"] < 4
    assert found["bundle_size"] > 0
    assert found["run"] >= found["denoiser"] > 0
    assert "int4" in rows[0].case
    assert "64x64" in rows[0].case
