"""The curves of a training: what is stored, what replaces what, and that they can be drawn."""

import csv
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import curves  # noqa: E402
import floors  # noqa: E402
import losses  # noqa: E402
import progress  # noqa: E402
from suites import SUITES  # noqa: E402

sys.path.remove(FOLDER)

SHOWN = SUITES["onediffusion"].curve


def scores(step, value):
    return [progress.Score(step, task, metric, value, value - 0.1, value + 0.1) for task, metric in SHOWN]


def test_scores_are_added_and_those_of_the_same_step_replaced(tmp_path):
    path = tmp_path / "scores.csv"
    assert progress.read_scores(path) == []
    progress.add_scores(path, scores(100, 0.5))
    progress.add_scores(path, scores(200, 0.7))
    progress.add_scores(path, scores(200, 0.8))
    found = progress.read_scores(path)
    assert [each.value for each in found if each.task == "edit"] == [0.5, 0.8]
    assert len(found) == 2 * len(SHOWN)


def test_every_task_has_a_group_and_every_target_a_task():
    assert {curves.group_of(task) for task in SUITES["onediffusion"].tasks} == set(curves.GROUPS)
    assert curves.group_of("image_to_multiview") == "views"
    assert curves.group_of("image_to_depth") == curves.group_of("segment") == "maps from pictures"
    assert curves.group_of("outpaint") == curves.group_of("edit")
    assert curves.group_of("layout_to_image") == "pictures from maps"
    known = {task for suite in SUITES.values() for task in suite.tasks}
    assert {each.task for each in (*floors.TARGETS, *floors.FLOORS)} <= known
    for suite in SUITES.values():
        assert {task for task, _ in suite.curve} | set(suite.quick) | suite.judged <= set(suite.tasks)


def test_a_mean_runs_over_what_came_before(monkeypatch):
    monkeypatch.setattr(curves, "SMOOTH", 2)
    assert curves.smoothed([1, 3, 5]) == [1, 2, 4]


def test_targets_are_told_met_from_not_met():
    table = {"edit": {"success": {"value": 0.9, "low": 0.85, "high": 0.95}, "scenes": 3}}
    assert "| edit | success | 0.900 | 0.850 to 0.950 | >= 0.8 | met |" in floors.format_targets(table)
    assert floors.format_targets(table).endswith("| edit | background_psnr |  |  | >= 25 | not measured |")
    table["edit"]["success"]["low"] = 0.75
    assert "| >= 0.8 | met, within the interval |" in floors.format_targets(table)
    table["edit"]["success"]["value"] = 0.7
    assert "| >= 0.8 | **not met** |" in floors.format_targets(table)
    table = {"image_to_depth": {"abs_rel": {"value": 0.07, "low": 0.06, "high": 0.09}}}
    assert floors.format_targets(table).endswith("| <= 0.08 | met, within the interval |")
    assert floors.format_targets({"edit": {"success": 0.9}}) == ""


def test_curves_are_drawn_from_what_is_there(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    with (tmp_path / "losses.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*losses.HEAD, "edit", "deblur"])
        writer.writerows([[50, 10, 20, 0.5, ""], [100, 20, 40, 0.4, 0.2]])
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path)])
    assert curves.main() == 0  # no scores yet
    progress.add_scores(tmp_path / "scores.csv", scores(100, 0.5))
    assert curves.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path / "missing")])
    assert curves.main() == 2
    assert "losses.csv" in capsys.readouterr().err
