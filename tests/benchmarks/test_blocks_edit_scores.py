"""Whether an edit happened: what counts as success, and what only looks like it."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import channel_edits  # noqa: E402
import edit_scores  # noqa: E402
import maps  # noqa: E402
import world  # noqa: E402
from channel_frames import channel_frames  # noqa: E402
from frames import scene_frames  # noqa: E402

sys.path.remove(FOLDER)


def edits(kind):
    """Return frames of three scenes whose edit recolours, or removes."""
    found = (scene_frames(seed) for seed in range(100))
    return [each for each in found if (each.story.edit.after is None) == (kind == "remove")][:3]


def success(picture, shown):
    return edit_scores.edit_score(np.ascontiguousarray(picture, np.float32), shown)["success"]


@pytest.mark.parametrize("kind", ["recolour", "remove"])
def test_the_edited_scene_is_a_success_and_the_given_one_is_not(kind):
    for shown in edits(kind):
        assert success(shown.pictures["edited"], shown) == 1
        assert success(shown.pictures["picture"], shown) == 0


def place_of(shown):
    return (shown.rendering.thing == shown.story.scene.things.index(shown.story.edit.before))[..., None]


def test_a_thing_painted_over_was_not_removed():
    for shown in edits("remove"):
        colours = set(world.COLOURS) - {thing.colour for thing in shown.story.scene.things}
        other = world.COLOURS[min(colours)]
        assert success(np.where(place_of(shown), other, shown.pictures["edited"]), shown) == 0


def test_a_box_of_the_new_colour_is_not_the_recoloured_thing():
    boxed = []
    for shown in edits("recolour"):
        box = maps.boxes_of(shown.rendering, 3)[shown.story.scene.things.index(shown.story.edit.before)]
        picture = shown.pictures["edited"].copy()
        picture[box[1] : box[3], box[0] : box[2]] = world.COLOURS[shown.story.edit.after.colour]
        boxed.append(success(picture, shown))
    assert 0 in boxed  # a cube seen from its front is its box


@pytest.mark.parametrize("kind", ["recolour", "remove"])
def test_what_was_not_to_change_has_to_stay(kind):
    for shown in edits(kind):
        others = [each for each in shown.story.edit.scene.things if each != shown.story.edit.after]
        if others:
            gone = shown.rendering.thing == shown.story.scene.things.index(others[0])
            ground = world.GROUNDS[shown.story.scene.ground]
            assert success(np.where(gone[..., None], ground, shown.pictures["edited"]), shown) == 0


def test_a_thing_in_the_wrong_place_was_not_added():
    seed = next(seed for seed in range(1, 99, 2)
                if channel_edits.asked_change(channel_frames(seed, 64, set()).story).kind == "add")  # fmt: skip
    frames = channel_frames(seed)
    change = channel_edits.asked_change(frames.story)
    assert edit_scores.change_score(frames.pictures["picture"], frames, change)["success"] == 1
    assert edit_scores.change_score(frames.pictures["edited"], frames, change)["success"] == 0
    where = frames.rendering.thing == frames.story.scene.things.index(frames.story.edit.before)
    columns = np.nonzero(where)[1]
    shift = where.shape[1] - 1 - columns.max() if "left of" in change.instruction else -columns.min()
    moved = np.roll(where, shift, 1)[..., None]
    misplaced = np.where(moved, np.roll(frames.pictures["picture"], shift, 1), frames.pictures["edited"])
    assert edit_scores.change_score(misplaced, frames, change)["success"] == 0
