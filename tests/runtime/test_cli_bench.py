"""``framert bench`` as it is called: what it prints where, its exit codes, and what it refuses before it measures."""

import json
import shutil
from pathlib import Path

import pytest

from framert.runtime.bench import plan, quality, rows
from framert.runtime.bundle import Bundle
from framert.runtime.cli import bench, main
from framert.runtime.cli.parser import parse
from framert.runtime.errors import ConfigError

pytest.importorskip("onnxruntime")

QUICK = ("--sizes", "32x32", "--steps", "2", "--rounds", "1", "--together", "2", "--threads", "1")


@pytest.fixture
def call(capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def measured(golden_bundle):
    """One measurement of everything, as JSON and the code, shared by the tests that only read it."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    spec = "poisson:rate=50,seconds=0.3,mix=text_to_image@32x48*2+image_to_depth,deadline=60"
    words = ("bench", golden_bundle, *QUICK, "--tasks", "text_to_image,camera_pose", "--trace", spec)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in (*words, "--reference", golden_bundle, "--json")])
    return code, json.loads(out.getvalue()), err.getvalue()


def test_everything_is_measured(measured):
    code, content, progress = measured
    assert code == 0
    assert content["failures"] == []
    found = {(row["metric"], row["case"].partition(":")[0].partition(";")[0]) for row in content["rows"]}
    assert found >= {
        ("load", "start"),
        ("load_to_first_step", "start"),
        ("latency", "alone"),
        ("latency", "trace"),
        ("throughput", "packed"),
        ("throughput", "alone"),
        ("goodput", "trace"),
        ("offered", "trace"),
        ("in_time", "trace"),
        ("bundle_size", "files"),
        ("psnr", "alone"),
        ("psnr", "packed"),
        ("psnr", "trace"),
    }
    assert {"alone: text_to_image 32x32, 2 steps", "alone: text_to_image 32x48, 2 steps"} <= {
        row["case"].partition(";")[0] for row in content["rows"] if row["metric"] == "latency"
    }
    assert "latency: round 1 of 1" in progress
    assert "trace: " in progress


def test_rows_of_the_measurement_are_complete(measured, golden_bundle):
    _, content, _ = measured
    identity = plan.identity(Bundle.open(golden_bundle).manifest)
    for row in content["rows"]:
        assert set(row) == set(rows.COLUMNS)
        assert row["bench"] == "serve"
        assert row["case"].endswith(identity)
        assert row["impl"].startswith("onnxruntime-fp32")
        assert (row["threads"], row["commit"]) == (1, "")
        assert row["p20"] <= row["p50"] <= row["p80"] <= row["p99"]
    by_metric = {row["metric"]: row for row in content["rows"]}
    assert by_metric["load"]["p50"] < by_metric["load_to_first_step"]["p50"]
    assert by_metric["in_time"]["p50"] == 1
    assert 0 < by_metric["goodput"]["p50"] <= by_metric["offered"]["p50"]
    assert (
        by_metric["bundle_size"]["p50"]
        == sum(file.size for file in Bundle.open(golden_bundle).manifest.files.values()) / 1e6
    )
    assert by_metric["rate_ratio"]["impl"] == "onnxruntime-fp32 packed/onnxruntime-fp32 alone"
    environment = content["environment"]
    assert environment["device"]
    assert environment["threads"] == 1
    assert environment["commit"] is None


def test_a_packed_picture_is_the_one_made_alone(measured):
    _, content, _ = measured
    psnr = {row["p50"] for row in content["rows"] if row["metric"] == "psnr"}
    assert psnr == {quality.IDENTICAL}


def test_pictures_below_the_gate_fail_the_run(call, golden_bundle):
    """No picture is above 100 dB, so a gate beyond that is one that every bundle fails."""
    code, out, err = call("bench", golden_bundle, *QUICK, "--tasks", "text_to_image", "--gate", "101", "--quiet")
    assert code == 1
    assert err == (
        "framert: error: packed: text_to_image 32x32, 2 steps: PSNR 100.0 dB against the same bundle alone, "
        "101 dB asked for\n"
    )
    lines = out.splitlines()
    assert lines[0].startswith("onnxruntime-fp32 of checkpoint ")
    assert lines[1] == "start"
    assert any(line.startswith("  latency") and line.split()[2] == "s" for line in lines)
    assert any(line.startswith("  rate_ratio packed/alone") for line in lines)


def test_another_models_pictures_are_noticed(call, golden_bundle, tmp_path):
    """A reference whose latent scale differs makes other pictures; without a gate that low the run fails."""
    other = tmp_path / "other.bundle"
    shutil.copytree(golden_bundle, other)
    manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
    manifest["model"]["scaling_factor"] *= 0.2
    (other / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, _, err = call("bench", golden_bundle, *QUICK, "--tasks", "text_to_image", "--reference", other)
    assert code == 1
    assert "framert: error: alone: text_to_image 32x32, 2 steps: PSNR " in err


def test_a_checkpoint_is_exported_first_and_that_is_timed(call, golden_bundle, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from framert.runtime.cli import lazy

    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model_index.json").write_text("{}")
    given = []

    def export(checkpoint, output, **options):
        given.append(checkpoint)
        shutil.copytree(golden_bundle, output)

    monkeypatch.setattr(lazy, "import_module", lambda name: SimpleNamespace(export=export))
    code, out, _ = call("bench", tmp_path / "checkpoint", *QUICK, "--tasks", "text_to_image")
    assert code == 0
    assert given == [tmp_path / "checkpoint"]
    assert out.splitlines()[2].startswith("  export")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "paint"], "there is no task 'paint'"),
        (["--sizes", "64x"], "'64x' is not a size"),
        (["--sizes", "33x32"], "33x32"),
        (["--sizes", "32x48", "--tasks", "camera_pose"], "square"),
        (["--steps", "0"], "steps"),
        (["--rounds", "0"], "rounds=0"),
        (["--together", "0"], "together=0"),
        (["--gate", "nan"], "gate=nan"),
        (["--trace", "poisson"], "the trace is 'poisson'; give poisson:rate="),
        (["--precision", "int3"], "int3"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--reference", "missing.bundle"], "no bundle at missing.bundle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_call_measures_nothing(call, golden_bundle, words, message):
    code, out, err = call("bench", golden_bundle, *QUICK, "--quiet", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_rows_are_appended_to_the_file_named(call, golden_bundle, tmp_path, monkeypatch):
    captured = rows.Environment.capture
    given = []

    def capture(root, *, threads, record):
        assert record
        return captured(root, threads=threads, record=False)

    def append(self, name, made):
        given.append((name, list(made)))
        return Path(name)

    monkeypatch.setattr(bench.Environment, "capture", capture)
    monkeypatch.setattr(bench.Environment, "append", append)
    file = tmp_path / "rows.csv"
    code, _, err = call("bench", golden_bundle, *QUICK, "--tasks", "text_to_image", "-o", file)
    assert code == 0
    assert [name for name, _ in given] == [str(file)]
    assert {row.metric for row in given[0][1]} >= {"latency", "throughput", "psnr"}
    assert f"rows appended to {file}" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.txt", "ends in .csv"),
        ("folder.csv", "ends in .csv"),
        ("none/rows.csv", "make it first"),
        ("old.csv", "columns"),
    ],
)
def test_where_no_rows_can_go_nothing_is_measured(call, golden_bundle, tmp_path, monkeypatch, name, message):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "old.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(bench.Environment, "capture", lambda *_, **__: pytest.fail("went on"))
    code, out, err = call("bench", golden_bundle, *QUICK, "-o", tmp_path / name)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_rows_need_a_repository(call, golden_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "checkout", lambda: None)
    code, out, err = call("bench", golden_bundle, *QUICK, "-o", tmp_path / "rows.csv")
    assert (code, out) == (2, "")
    assert "installed without its repository" in err
    assert not list(tmp_path.iterdir())


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one task"):
        plan.Plan(tasks=[], sizes=[(32, 32)])


def test_a_side_alone_is_a_square():
    parsed = parse(["bench", "b", "--size", "512", "64x32,96"])
    assert [size for sizes in parsed.sizes for size in sizes] == [(512, 512), (64, 32), (96, 96)]
