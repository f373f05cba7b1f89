"""The judge of pictures and the scores that rest on it: they follow what a picture shows, and nothing else."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import cases  # noqa: E402
import frames  # noqa: E402
import judge  # noqa: E402
import regions  # noqa: E402
import scoring  # noqa: E402
import world  # noqa: E402
from failures import failure  # noqa: E402
from heldout import novelty  # noqa: E402
from measured import Measured  # noqa: E402

sys.path.remove(FOLDER)

RUN = {"first": 0, "scenes": 40, "steps": 12, "guidance": None, "side": 64, "impl": "ort-fp32", "model": "blocks abc"}


@pytest.fixture(scope="module")
def small():
    """Return a judge that learned from few scenes: right mostly, and made in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "SCENES", 250)
        return judge.train(epochs=25)


@pytest.fixture
def opened(small, monkeypatch):
    monkeypatch.setattr(cases, "open_judge", lambda side: small)
    return small


def scene_of(*shapes):
    """Return scene 8, of three things, with other shapes and in known colours."""
    scene = world.sample_scene(8, things=3)
    for index, (shape, colour) in enumerate(zip(shapes, ("red", "yellow", "cyan"), strict=True)):
        scene = scene.with_thing(index, shape=shape, colour=colour)
    return scene


def test_even_a_small_judge_is_right_on_most_held_out_renderings(small, monkeypatch):
    monkeypatch.setattr(judge, "HELD_OUT", 60)
    assert judge.accuracy(small) > 0.85
    shuffled = replace(small, leave=small.leave[:, [1, 2, 3, 0]], leave_bias=small.leave_bias[[1, 2, 3, 0]])
    assert judge.accuracy(shuffled) < 0.15


def test_colour_and_shape_have_to_be_there_together(small):
    shown, other = scene_of("sphere", "cube", "cone"), scene_of("cube", "sphere", "cone")
    picture = world.render(shown).picture
    assert small.things(picture) == {"red": "sphere", "yellow": "cube", "cyan": "cone"}
    assert small.present(picture, shown.things) == [True, True, True]
    assert small.present(picture, other.things) == [False, False, True]
    recoloured = shown.with_thing(2, colour="pink")
    assert small.present(picture, recoloured.things) == [True, True, False]
    assert small.things(world.render(shown.without(0).without(0).without(0)).picture) == {}


def test_regions_hang_together_by_sides():
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
    assert regions.largest(mask).sum() == 4
    assert not regions.largest(mask)[0].any()
    first = np.zeros_like(mask)
    first[0, 0] = True
    np.testing.assert_array_equal(np.nonzero(regions.spread(first, mask)), [[0, 0], [0, 1]])
    assert not regions.largest(np.zeros((3, 3), bool)).any()


def test_masks_are_kept_whatever_the_colour_and_not_elsewhere():
    shown = frames.scene_frames(3, wanted={"picture"})
    picture = shown.pictures["picture"]
    assert scoring.masks_kept(picture, shown) > 0.9
    assert scoring.masks_kept(np.roll(picture, 12, axis=1), shown) < 0.6
    other = shown.story.scene
    for index, thing in enumerate(other.things):
        other = other.with_thing(index, colour=next(name for name in world.COLOURS if name != thing.colour))
    swapped = world.render(other).picture
    assert scoring.masks_kept(swapped, shown) > 0.8
    assert scoring.colours_in_place(swapped, shown)["colours"] == 0


def test_a_judge_that_is_often_wrong_is_not_used(small, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "HELD_OUT", 20)
    monkeypatch.setattr(judge, "train", lambda side: replace(small, leave=-small.leave))
    with pytest.raises(ValueError, match="of held-out renderings"):
        judge.open_judge.__wrapped__(tmp_path, 64)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(judge, "ACCURACY", 0.0)
    first = judge.open_judge.__wrapped__(tmp_path, 64)
    monkeypatch.setattr(judge, "train", None)  # the second time it is read
    np.testing.assert_array_equal(judge.open_judge.__wrapped__(tmp_path, 64).leave, first.leave)


@pytest.mark.parametrize("task", ["text_to_image", "identity", "subject", "semantic_to_image"])
def test_the_true_picture_scores_full_marks_and_another_scenes_does_not(task, opened):
    truth, other = frames.scene_frames(4), frames.scene_frames(5)
    score = cases.case_of(task, truth).score
    right, wrong = (score(SimpleNamespace(pixels=each.pictures["picture"][None])) for each in (truth, other))
    assert right["objects"] == right["things"] == 1
    assert wrong["objects"] == 0
    assert ("item" in right) == (task == "subject")
    assert ("mask_iou" in right) == (task == "semantic_to_image")


def test_a_picture_from_a_depth_map_is_estimated_again_and_set_against_the_map():
    shown = frames.scene_frames(6, wanted={"picture", "depth"})
    case = cases.case_of("depth_to_image", shown)
    check = case.check(SimpleNamespace(images=[Image.new("RGB", (64, 64))]))
    assert check.request["images"][0].size == (64, 64)
    depth = shown.pictures["depth"][..., 0]
    assert check.score(SimpleNamespace(depth=depth)) == {"reestimated_abs_rel": 0}
    assert check.score(SimpleNamespace(depth=np.zeros_like(depth)))["reestimated_abs_rel"] > 0.5
    assert cases.case_of("canny_to_image", frames.scene_frames(6)).check is None


def test_scores_of_obeying_words_come_by_novelty_too(tmp_path):
    kinds = [novelty(world.sample_scene(seed)) for seed in range(40)]
    objects = [float(kind == "") for kind in kinds]
    measured = Measured(
        RUN, {"text_to_image": {"objects": objects, "colours": [1.0] * 40}, "deblur": {"psnr": [9.0] * 40}}
    )
    content = measured.as_json()
    assert content["text_to_image/known"]["objects"]["value"] == 1
    assert content["text_to_image/new_things"]["objects"]["value"] == 0
    assert "colours" not in content["text_to_image/known"]
    assert sum(content[f"text_to_image/{name}"]["scenes"] for name in ("known", "new_things", "new_pairs")) == 40
    assert not any(name.startswith("deblur/") for name in content)
    success = [float(kind == "" and novelty(frames.tell(seed).edit.scene) == "") for seed, kind in enumerate(kinds)]
    edits = replace(measured, tasks={"edit": {"success": success}}).as_json()
    assert edits["edit/known"]["success"]["value"] == 1  # what a thing is to become counts too
    assert edits["edit/known"]["scenes"] == sum(success) < objects.count(1)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert Measured.read(path) == measured


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ({"colours": 0.0, "objects": 1.0, "mask_iou": 0.9}, ""),
        ({"objects": 0.0, "things": 0.5}, "objects 0"),
        ({"error": 9.0, "abs_rel": 0.05}, ""),
        ({"rotation_degrees": 31.26, "centre_error": 0.2}, "rotation_degrees 31.3"),
    ],
)
def test_a_failure_names_the_metric_that_is_out_of_bounds(scores, says):
    assert failure(scores) == says
