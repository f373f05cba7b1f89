"""The step benchmark, whole, on a model small enough for a test: every side agrees, and the rows are complete."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("diffusers")

from framert.runtime.bench.rows import Environment  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OURS = ["openvino-fp32"]
TINY = {"depth": 2, "width": 96, "heads": 4, "kv_heads": 1, "frames": 2, "side": 4, "text": 5, "text_width": 24}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_step")


@pytest.mark.slow
def test_sides_agree_and_rows_are_complete(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment.capture(ROOT, threads=1, record=False)
    kinds = ["eager", "eager-sdpa", "eager-bf16", "hoisted-compiled"]
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # takes a minute
    rows = bench.measure(bench.Case(**TINY), kinds, environment, 2, lambda line: None, names=OURS)
    steps = [row.impl for row in rows if row.metric == "step"]
    ratios = [row.impl for row in rows if row.metric == "rate_ratio"]
    errors = {row.impl: row.p50 for row in rows if row.metric == "velocity_error"}
    assert steps == ["framert", *OURS, *kinds]
    ours = [f"{name}/{kind}" for name in OURS for kind in ("eager", "eager-bf16")]
    assert ratios == [*(f"framert/{kind}" for kind in kinds), *ours]
    assert max(errors["framert"], errors["openvino-fp32"]) < 1e-5 < errors["eager-sdpa"]
    assert errors["hoisted-compiled"] < 1e-5
    assert 1e-4 < errors["eager-bf16"] < 0.1
    assert all(row.n == 2 and row.p20 > 0 for row in rows if row.metric in {"step", "rate_ratio"})


def test_sides_that_disagree_are_not_timed(bench: ModuleType) -> None:
    inputs = bench.Inputs.random(bench.Case(**TINY))

    class Wrong:
        def __call__(self) -> tuple["torch.Tensor", "torch.Tensor"]:
            return inputs.latents, torch.ones_like(inputs.latents)

        def frames(self, tokens: "torch.Tensor") -> "torch.Tensor":
            return tokens

    eager = lambda: (inputs.latents + 1, torch.ones_like(inputs.latents) * 1.001)  # noqa: E731
    with pytest.raises(bench.CheckFailedError, match="from eager"):
        bench.velocity_errors({"framert": Wrong()}, {"eager": eager}, inputs)
