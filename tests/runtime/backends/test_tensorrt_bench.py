"""benchmarks/bench_tensorrt.py: every path on an emulated GPU, and the one sentence where there is none."""

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench_tensorrt")


def test_every_engine_is_compared_and_timed(bench, machine, golden_bundle, engine_bundle, capsys):
    machine()
    assert bench.main([str(golden_bundle), str(engine_bundle), "--rounds", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    outputs = ("text_encoder.hidden_states", "vae_encoder.mean", "conditioner.text_k", "conditioner.modulation",
               "vae_decoder.pixels", "denoiser profile 0", "denoiser profile 1", "denoiser profile 2")  # fmt: skip
    for output in outputs:
        (line,) = (line for line in lines if line.startswith(output) and " error " in line)
        error = float(line.split(" error ")[1].split()[0])
        assert error < 1e-5
    timed = [line for line in lines if " time " in line]
    assert sum("step" in line for line in timed) == 4  # of three profiles, and of a whole picture
    assert not any("not captured" in line for line in timed)


def test_an_engine_that_is_off_fails_the_run(bench, machine, golden_bundle, engine_bundle, monkeypatch, capsys):
    machine()
    monkeypatch.setattr(bench.Measurement, "add", lambda *_: None)
    worse = bench.Measurement.compare
    monkeypatch.setattr(
        bench.Measurement,
        "compare",
        lambda run, graph, case, found, exact: worse(
            run, graph, case, found + 0.01 * (graph == "vae_decoder") * abs(exact).max(), exact
        ),
    )
    assert bench.main([str(golden_bundle), str(engine_bundle), "--rounds", "1", "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: vae_decoder.pixels ")
    assert line.endswith(" off, and fp32 explains 0.0001")


@pytest.mark.parametrize("devices", [0, 1])
def test_a_machine_that_cannot_is_told_so_in_one_line(devices, bench, machine, golden_bundle, engine_bundle, capsys):
    machine((8, 6), devices=devices)
    assert bench.main([str(golden_bundle), str(engine_bundle), "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert ("needs an NVIDIA GPU" if not devices else "was built for sm_89") in line
