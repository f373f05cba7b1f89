"""The scoring script: its exit codes, and the pose errors it reports."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framert.runtime.cameras import Cameras

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import evaluate  # noqa: E402
import frames  # noqa: E402

sys.path.remove(FOLDER)


@pytest.mark.parametrize("damage", ["missing", "no manifest"])
def test_a_bundle_that_cannot_be_opened_is_a_bad_call(damage, tmp_path, monkeypatch, capsys):
    if damage == "no manifest":
        (tmp_path / "some.bundle").mkdir()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path / "some.bundle"), "--scenes", "1"])
    assert evaluate.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "some.bundle" in err


def test_pose_errors_keep_small_angles():
    scene = frames.scene_frames(3, 16)
    truth = evaluate.cameras_of(scene, 2)
    scores = evaluate._pose_scores(SimpleNamespace(cameras=truth), scene)
    assert (scores["rotation_degrees"], scores["centre_error"]) == (pytest.approx(0, abs=1e-9), pytest.approx(0))
    turn = np.deg2rad(1e-6)  # the cosine of this angle rounds to 1 or its neighbour
    pose = truth.camera_to_world.copy()
    pose[1, :3, :3] @= np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    turned = evaluate._pose_scores(SimpleNamespace(cameras=Cameras.from_matrices(pose)), scene)
    assert turned["rotation_degrees"] == pytest.approx(1e-6, rel=1e-4)
    assert turned["identity_degrees"] > 1
