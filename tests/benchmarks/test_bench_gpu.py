"""The scripts for GPUs run every path without one, on sizes that say nothing, and write no rows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from framert.runtime.bench.rows import Environment  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return ROOT / "benchmarks"


def tiny(device: ModuleType, name: str) -> object:
    environment = Environment.capture(ROOT, threads=1, record=False)
    torch.manual_seed(0)
    return device.Bench(name, torch.device("cpu"), True, 2, environment, 1e9)


def measured(name: str) -> tuple[object, dict[tuple[str, str], list[float]]]:
    bench = tiny(import_module("device"), name)
    with torch.inference_mode():
        import_module(f"bench_{name}").measure(bench)
    found: dict[tuple[str, str], list[float]] = {}
    for row in bench.rows:
        found.setdefault((row.impl, row.metric), []).append(row.p50)
    return bench, found


@pytest.mark.slow
def test_the_kernels_benchmark_runs_every_path(scripts: Path) -> None:
    bench, found = measured("kernels")
    assert bench.failures == []
    own = ("frame_attention", "frame_attention-tile64", "frame_attention+text", "frame_attention-nocap")
    for side in (*own, "sdpa-flash", "flex-softcap"):
        assert len(found[side, "rate"]) == 2  # equal and ragged sequences
    assert len(found["frame_attention/flex-softcap", "rate_ratio"]) == 2
    for kernel in ("norm_modulate", "gated_residual+norm", "qk_norm_rope", "swiglu-int8", "swiglu-fp8", "update"):
        assert found[f"{kernel}/copy", "bandwidth_ratio"][0] > 0
    assert len(found["gemm-bf16", "rate"]) == 5
    assert len(found["gemm-int8", "rate"]) == len(found["gemm-fp8", "rate"]) == 4


@pytest.mark.slow
def test_the_denoiser_benchmark_runs_every_path(scripts: Path) -> None:
    bench, found = measured("denoiser")
    assert bench.failures == []
    errors = {side: values[0] for (side, metric), values in found.items() if metric == "velocity_error"}
    assert errors["eager"] < 1e-6  # fp32 throughout on the CPU
    assert errors["framert-bf16"] < 1e-5  # so its weights and tables are those of the published model
    assert errors["framert-int8"] < 0.1
    assert errors["framert-fp8"] < 0.2
    for side in ("framert-bf16", "eager", "eager-sdpa", "compiled-sdpa", "hoisted-compiled"):
        assert len([value for value in found[side, "step"] if value > 0]) >= 2
    assert found["framert-bf16 packed/framert-bf16 alone", "rate_ratio"][0] > 0
    assert found["framert-bf16 reuse 4/framert-bf16 reuse 1", "rate_ratio"][0] > 0
    assert found["framert-bf16", "host_time"][0] > 0
    assert found["framert-bf16", "explained"][0] > 0
    assert ("bound/framert-bf16 frame_attention", "time_ratio") in found


def test_the_hoisted_sides_of_the_denoiser_benchmark_are_eagers(scripts: Path) -> None:
    """Without softcap both are the same model, whatever is precomputed."""
    module, device = import_module("bench_denoiser"), import_module("device")
    with torch.inference_mode():
        setup = module.Setup(tiny(device, "denoiser"))
        member = module.Member(2, 4, 6)
        inputs = module.Inputs.random(member, setup.config, setup.bench.device)
        expected = setup.eager(inputs, "sdpa")()[1]
        actual = setup.hoisted(member, inputs)()[1]
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_kept_keys_change_nothing_while_the_latents_stay(scripts: Path) -> None:
    """A step that skips the condition frame has the generated frame's velocity of the step before it."""
    module, device = import_module("bench_denoiser"), import_module("device")
    with torch.inference_mode():
        setup = module.Setup(tiny(device, "denoiser"))
        member = module.Member(2, 4, 6)
        inputs = module.Inputs.random(member, setup.config, setup.bench.device)
        step = setup.framert("bf16", [member], [inputs], reuse=True)
        step()
        whole = step.velocity()
        step.skip()
        torch.testing.assert_close(step.velocity()[:24], whole[:24], rtol=1e-5, atol=1e-5)


def test_a_side_that_cannot_run_is_left_out_and_ours_fails_the_run(
    scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tiny(import_module("device"), "kernels")

    def broken() -> object:
        raise RuntimeError("no such thing\nhere")

    good = lambda: 1  # noqa: E731
    assert list(bench.build({"sdpa-cudnn": broken, "fine": lambda: good}, "a case")) == ["fine"]
    assert bench.failures == []
    assert "left out: sdpa-cudnn at a case: no such thing\n" in capsys.readouterr().err
    assert bench.build({"frame_attention": lambda: broken}, "a case") == {}
    assert bench.failures == ["frame_attention at a case: no such thing"]


def test_captured_calls_are_replayed_and_a_side_that_cannot_be_is_left_out(
    scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, replays = [], []

    class Graph:
        def replay(self) -> None:
            replays.append(1)

    class Event:
        def __init__(self, **_: object) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, _: "Event") -> float:
            return 0.4  # milliseconds

    @contextmanager
    def capture(_: Graph) -> Iterator[None]:
        calls.append("captured")
        yield

    def stubborn() -> None:
        if calls.count("captured") == 2:
            raise RuntimeError("not permitted when stream is capturing")

    stand_ins = {"CUDAGraph": Graph, "graph": capture, "Event": Event, "synchronize": lambda *_: None,
                 "empty_cache": lambda: None}  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    bench = replace(tiny(import_module("device"), "kernels"), device=torch.device("cuda"), tiny=False)
    found = bench.seconds({"fine": lambda: calls.append("fine"), "sdpa-own": stubborn}, captured=True)
    assert found == {"fine": [0.4e-3 / 5] * 2}  # 5 calls in a burst of 2 ms, two rounds
    assert calls.count("fine") == 3 + 5  # once for each look at its time, and in the graph
    assert len(replays) == 1 + 2
    assert bench.failures == []


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no CUDA device; --device cpu --tiny"), (["--device", "cpu"], "give --tiny")],
    ids=["no device", "not tiny"],
)
def test_figures_of_a_cpu_are_refused(words: list[str], message: str) -> None:
    if not words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_kernels.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_results_are_named_after_the_device(scripts: Path) -> None:
    file_of = import_module("device").file_of
    assert file_of("NVIDIA H200") == "h200.csv"
    assert file_of("NVIDIA GeForce RTX 4090") == "rtx-4090.csv"
