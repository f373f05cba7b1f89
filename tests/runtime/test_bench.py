"""The harness: rows that name what was measured, and timing that treats all sides alike."""

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framert.runtime.bench import alternate, rows
from framert.runtime.errors import ConfigError

COLUMNS = "bench,impl,case,metric,unit,p20,p50,p80,p99,n,threads,device,torch,triton,onnxruntime,openvino,tensorrt,commit,date"  # noqa: E501


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("pass\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "code")
    return tmp_path


def some_rows(environment: rows.Environment) -> list[rows.Row]:
    common = {"bench": "step", "case": "small, odd"}
    return [
        environment.row(impl="framert", metric="step", unit="s", samples=[0.1, 0.3, 0.2], **common),
        environment.row(impl="framert/eager", metric="rate_ratio", unit="x", samples=[3.0], **common),
    ]


def test_rows_survive_the_file(checkout: Path) -> None:
    environment = rows.Environment.capture(checkout, threads=2)
    written = some_rows(environment)
    path = environment.append("step.csv", written[:1])
    assert environment.append("step.csv", written[1:]) == path == checkout / "benchmarks/results/step.csv"
    assert path.read_text().splitlines()[0] == COLUMNS
    assert len(path.read_text().splitlines()) == 3
    assert rows.read(path) == written
    assert written[0].commit == git(checkout, "rev-parse", "--short=12", "HEAD")
    assert written[0].p50 == 0.2
    assert written[0].n == 3


def test_environment_names_the_machine(checkout: Path) -> None:
    environment = rows.Environment.capture(checkout, threads=3)
    assert environment.threads == 3
    assert environment.device == rows.cpu_name() != ""
    assert rows.Environment.capture(checkout, threads=1, device="some GPU").device == "some GPU"
    assert set(environment.versions) == {"torch", "triton", "onnxruntime", "openvino", "tensorrt"}


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_dirty_checkout_is_refused(checkout: Path, name: str) -> None:
    environment = rows.Environment.capture(checkout, threads=1)
    (checkout / name).write_text("changed\n")
    with pytest.raises(ConfigError, match=name):
        rows.Environment.capture(checkout, threads=1)
    with pytest.raises(ConfigError, match=name):
        environment.append("step.csv", some_rows(environment))
    assert not (checkout / rows.RESULTS).exists()


def test_rows_that_are_only_looked_at_are_not_kept(checkout: Path) -> None:
    (checkout / "new.py").write_text("changed\n")
    environment = rows.Environment.capture(checkout, threads=1, record=False)
    with pytest.raises(ConfigError, match="record=False"):
        environment.append("step.csv", some_rows(environment))


def test_changed_results_alone_are_not_dirty(checkout: Path) -> None:
    (checkout / rows.RESULTS).mkdir(parents=True)
    (checkout / rows.RESULTS / "other.csv").write_text("x\n")
    rows.Environment.capture(checkout, threads=1)


def test_a_commit_during_the_run_is_refused(checkout: Path) -> None:
    environment = rows.Environment.capture(checkout, threads=1)
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "later")
    with pytest.raises(ConfigError, match="moved from"):
        environment.append("step.csv", some_rows(environment))


def test_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a git checkout"):
        rows.Environment.capture(tmp_path / "missing", threads=1)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", f"{COLUMNS}\nstep,framert\n"], ids=["columns", "short line"])
def test_a_foreign_or_damaged_file_is_refused(checkout: Path, text: str) -> None:
    path = checkout / rows.RESULTS / "step.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    environment = rows.Environment.capture(checkout, threads=1)
    with pytest.raises(ConfigError, match=r"step\.csv"):
        environment.append("step.csv", some_rows(environment))
    assert path.read_text() == text


def test_a_ratio_names_both_sides(checkout: Path) -> None:
    row, ratio = some_rows(rows.Environment.capture(checkout, threads=1))
    with pytest.raises(ConfigError, match="both sides"):
        replace(row, metric="rate_ratio")
    with pytest.raises(ConfigError, match="both sides"):
        replace(ratio, metric="step")


def test_latest_run_of_one_bench(checkout: Path) -> None:
    row, ratio = some_rows(rows.Environment.capture(checkout, threads=1))
    old = replace(row, date="2001-01-01T00:00:00Z")
    assert rows.latest([row, old, ratio, replace(row, bench="other", date="2999-01-01T00:00:00Z")], "step") == [
        row,
        ratio,
    ]
    assert rows.latest([row], "unknown") == []


def test_quantiles() -> None:
    assert rows.quantiles(range(101)) == pytest.approx((20, 50, 80, 99))
    assert rows.quantiles([5.0]) == (5, 5, 5, 5)
    for bad in ([], [1.0, np.nan], [np.inf]):
        with pytest.raises(ConfigError, match="finite samples"):
            rows.quantiles(bad)


def test_sides_alternate_and_reverse() -> None:
    calls: list[str] = []
    done: list[int] = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = alternate.alternate(sides, rounds=3, warmup=1, pause=0, on_round=done.append)
    assert "".join(calls) == "cba" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert done == [1, 2, 3]


def test_seconds_are_of_the_side_that_ran() -> None:
    sides = {"quick": lambda: None, "sleeper": lambda: time.sleep(0.03)}
    seconds = alternate.alternate(sides, rounds=2, warmup=0, pause=0)
    assert min(seconds["sleeper"]) >= 0.03
    assert min(alternate.rate_ratios(seconds, "quick", "sleeper")) > 1


def test_ratios_go_round_by_round() -> None:
    assert alternate.rate_ratios({"a": [1.0, 2.0], "b": [3.0, 4.0]}, "a", "b") == [3.0, 2.0]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": 1, "warmup": -1}], ids=str)
def test_nothing_to_time_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one side"):
        alternate.alternate({"a": lambda: None}, **options)
    with pytest.raises(ConfigError, match="at least one side"):
        alternate.alternate({}, rounds=1)
