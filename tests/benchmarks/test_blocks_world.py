"""Properties of the Blocks world: what its pictures, maps, cameras and edits promise each other."""

import sys
from pathlib import Path

import numpy as np
import pytest

from framert.runtime.cameras import Cameras
from framert.runtime.colors import COLORS

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import frames  # noqa: E402
import maps  # noqa: E402
import scoring  # noqa: E402
import world  # noqa: E402

sys.path.remove(FOLDER)

SEEDS = (0, 1, 2, 3, 17)
SIZE = (64, 64)


@pytest.fixture(scope="module", params=SEEDS, ids=str)
def shown(request):
    return frames.scene_frames(request.param)


def test_a_seed_repeats_its_scene_and_another_does_not(shown):
    again = frames.scene_frames(shown.story.seed)
    assert again.story == shown.story
    for name, picture in shown.pictures.items():
        np.testing.assert_array_equal(again.pictures[name], picture)
    assert frames.tell(shown.story.seed + 1).scene != shown.story.scene


def test_pictures_lie_in_0_to_1_and_have_the_asked_size(shown):
    for name, picture in shown.pictures.items():
        assert picture.shape == (64, 64, 3), name
        assert picture.min() >= 0, name
        assert picture.max() <= 1, name


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 80)], ids=str)
def test_a_picture_that_is_not_square_is_the_crop_of_the_square_one(size):
    scene, side = world.sample_scene(4), max(size)
    whole, part = (world.render(scene, size=each) for each in ((side, side), size))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    window = (slice(top, top + size[1]), slice(left, left + size[0]))
    np.testing.assert_allclose(part.picture, whole.picture[window], atol=1e-4)
    np.testing.assert_array_equal(part.thing, whole.thing[window])


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_agrees_between_views_through_the_runtime_cameras(seed):
    """Points seen by camera 0, moved by the published matrices, are seen by camera 1 at their depth or are hidden."""
    scene = world.sample_scene(seed)
    views = [scene.view, world.View(scene.view.azimuth + 20, scene.view.elevation + 3, 1.6)]
    first, second = (world.render(scene, view, (128, 128)) for view in views)
    cameras = Cameras.orbit([v.azimuth for v in views], [v.elevation for v in views], [v.distance for v in views])
    move = np.linalg.inv(cameras.camera_to_world[1]) @ cameras.camera_to_world[0]
    ticks = (np.arange(128) + 0.5 - 64) / (128 * world.FOCAL)
    x, y = np.meshgrid(ticks, ticks)
    near = first.depth < 2.5
    points = np.stack([x, y, np.ones_like(x)], -1)[near] * first.depth[near][:, None]
    moved = points @ move[:3, :3].T + move[:3, 3]
    pixels = np.floor(moved[:, :2] / moved[:, 2:] * 128 * world.FOCAL + 64).astype(int)
    inside = ((pixels >= 0) & (pixels < 128)).all(1)
    seen = second.depth[pixels[inside, 1], pixels[inside, 0]]
    agree = np.abs(seen - moved[inside, 2]) < 0.02
    hidden = seen < moved[inside, 2]
    assert inside.mean() > 0.5
    assert agree.mean() > 0.8
    assert (agree | hidden).mean() > 0.97  # the rest are pixels on an outline


def test_camera_matrices_equal_the_runtime_ones():
    view = world.View(33.0, 21.0, 1.55)
    theirs = Cameras.orbit([view.azimuth], [view.elevation], [view.distance]).camera_to_world[0]
    # The world's axes differ by one fixed rotation at most: poses relative to another camera must be equal.
    other = world.View(70.0, 30.0, 1.7)
    theirs_other = Cameras.orbit([other.azimuth], [other.elevation], [other.distance]).camera_to_world[0]
    (rows, position), (other_rows, other_position) = view.basis(), other.basis()
    ours = np.eye(4)
    ours[:3, :3], ours[:3, 3] = rows @ other_rows.T, rows @ (other_position - position)
    np.testing.assert_allclose(np.linalg.inv(theirs) @ theirs_other, ours, atol=1e-6)
    assert np.linalg.norm(position) == pytest.approx(1.55, abs=1e-6)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-6)


def test_project_inverts_the_rays(shown):
    scene = shown.story.scene
    hits = world.trace(scene, scene.view, SIZE)
    near = hits.depth < 10
    points = hits.position + hits.direction[near] * hits.depth[near][:, None]
    pixels, depth = world.project(points.astype(np.float32), scene.view, SIZE)
    rows, columns = np.nonzero(near)
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1) + 0.5, atol=2e-2)
    np.testing.assert_allclose(depth, hits.depth[near], rtol=1e-3)


def test_every_thing_is_visible_and_fills_its_box(shown):
    boxes = maps.boxes_of(shown.rendering, len(shown.story.scene.things))
    lefts = []
    for index, box in enumerate(boxes):
        mask = shown.rendering.thing == index
        assert mask.mean() > 0.01
        assert box is not None
        assert mask[box[1] : box[3], box[0] : box[2]].sum() == mask.sum()
        lefts.append(np.nonzero(mask)[1].mean())
    assert lefts == sorted(lefts)  # captions go from left to right


def test_maps_hold_what_the_masks_say(shown):
    colours = shown.story.colours
    for index, name in enumerate(colours):
        mask = shown.rendering.thing == index
        painted = (shown.pictures["semantic"] == maps.mask_colour(name)).all(-1)
        np.testing.assert_array_equal(painted, mask)
    assert not shown.pictures["semantic"][shown.rendering.thing < 0].any()


def test_mask_colours_are_the_published_ones():
    for name, code in COLORS.items():
        np.testing.assert_allclose(maps.mask_colour(name) * 255, code, atol=1e-4)


def test_depth_and_grey_are_inverse():
    depth = np.linspace(maps.NEAR, maps.FAR, 50, dtype=np.float32)
    np.testing.assert_allclose(maps.grey_to_depth(maps.depth_to_grey(depth)), depth, rtol=1e-5)
    assert maps.depth_to_grey(np.array([np.inf, 100.0, 0.1])).tolist() == [0, 0, 1]


def test_an_edit_changes_what_it_says_and_little_else(shown):
    edit = shown.story.edit
    before, after = shown.pictures["picture"], shown.pictures["edited"]
    index = shown.story.scene.things.index(edit.before)
    assert edit.before.name in edit.instruction
    changed = np.abs(after - before).max(-1) > 0.02
    own = shown.rendering.thing == index
    assert changed[own].mean() > 0.8
    if edit.after is not None:
        grown = scoring._grown(own)  # antialiasing mixes the outline
        assert not changed[~grown].any()
        assert edit.instruction.endswith(edit.after.colour)


def test_the_scores_recognise_the_truth(shown):
    picture = shown.pictures["picture"]
    assert scoring.colours_shown(picture, shown) == {"colours": 1}
    assert scoring.colours_in_place(picture, shown)["colours"] == 1
    present = {thing.colour for thing in shown.story.scene.things}
    absent = [colour for colour in world.COLOURS if colour not in present]
    assert all(scoring.colour_share(picture, colour) < scoring.PRESENT for colour in absent)


def test_the_caption_names_every_thing(shown):
    words = frames.caption(shown.story.scene)
    assert all(thing.name in words for thing in shown.story.scene.things)
    plain = frames.caption(shown.story.scene, plain=1)
    assert plain.startswith(f"a {shown.story.scene.things[0].shape}")


def test_the_hole_is_grey_and_all_else_is_kept(shown):
    picture, filled = shown.pictures["picture"], shown.pictures["hole"]
    assert 0.08 < shown.hole.mean() < 0.27
    np.testing.assert_array_equal(filled[~shown.hole], picture[~shown.hole])
    assert np.all(filled[shown.hole] == np.float32(maps.HOLE_GREY))


def test_evaluation_and_training_seeds_are_apart():
    assert world.FIRST_TRAINING_SEED >= 1_000_000
