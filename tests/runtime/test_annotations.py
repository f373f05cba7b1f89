"""Depth, masks and boxes, from pictures as clean and as dirty as a model makes them."""

import numpy as np
import pytest

from framert.runtime import annotations
from framert.runtime.colors import COLORS

NAMES = {"red cube": COLORS["cyan"], "green ball": COLORS["magenta"], "cone": COLORS["gold"]}


def painted(shapes: dict[str, tuple[slice, slice]], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    pixels = np.zeros((*size, 3), np.float32)
    for name, where in shapes.items():
        pixels[where] = np.array(NAMES[name]) / 255
    return pixels


def dirty(pixels: np.ndarray, strength: float = 0.12) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(pixels.shape)
    return np.clip(pixels + strength * noise, 0, 1).astype(np.float32)


def test_depth_is_the_channel_mean():
    pixels = np.random.default_rng(0).uniform(0, 1, (5, 6, 3)).astype(np.float32)
    found = annotations.depth(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pixels.mean(axis=2), rtol=1e-6)


def test_masks_are_what_was_painted_and_never_overlap():
    where = {"red cube": np.s_[3:20, 5:30], "green ball": np.s_[25:40, 10:60]}
    found = annotations.masks(dirty(painted(where)), NAMES)
    assert list(found) == list(NAMES)
    for name, mask in found.items():
        expected = np.zeros((48, 64), bool)
        if name in where:
            expected[where[name]] = True
        np.testing.assert_array_equal(mask, expected)
    assert sum(mask.astype(int) for mask in found.values()).max() == 1


@pytest.mark.parametrize("color", COLORS)
def test_every_color_is_told_from_the_background(color):
    pixels = np.zeros((8, 8, 3))
    pixels[2:5, 3:7] = np.array(COLORS[color]) / 255
    mask = annotations.masks(pixels, {"thing": COLORS[color]})["thing"]
    assert mask.sum() == 12
    assert mask[2:5, 3:7].all()


def test_only_named_colors_are_candidates():
    """Orange is not in the legend, so it goes to the closest that is."""
    pixels = np.tile(np.array(COLORS["orange"]) / 255, (4, 4, 1))
    assert annotations.masks(pixels, NAMES)["cone"].all()


@pytest.mark.parametrize("strength", [0, 0.12])
@pytest.mark.parametrize("box", [(5, 3, 30, 20), (0, 0, 64, 48), (10, 40, 12, 48), (63, 0, 64, 48)], ids=str)
def test_boxes_are_the_filled_rectangles(box, strength):
    left, top, right, bottom = box
    found = annotations.boxes(dirty(painted({"cone": np.s_[top:bottom, left:right]}), strength), NAMES)
    assert found == {"red cube": None, "green ball": None, "cone": box}


def test_stray_pixels_and_ragged_edges_do_not_move_a_box():
    pixels = painted({"red cube": np.s_[10:30, 20:50]})
    rng = np.random.default_rng(1)
    stray = rng.integers(0, (48, 64), (40, 2))
    pixels[stray[:, 0], stray[:, 1]] = np.array(NAMES["red cube"]) / 255
    pixels[10:30, 50][rng.uniform(size=20) < 0.15] = np.array(NAMES["red cube"]) / 255
    assert annotations.boxes(pixels, NAMES)["red cube"] == (20, 10, 50, 30)


def test_a_box_half_behind_another_keeps_its_extent():
    pixels = painted({"red cube": np.s_[10:40, 10:50], "cone": np.s_[15:35, 30:60]})
    found = annotations.boxes(pixels, NAMES)
    assert found["red cube"] == (10, 10, 50, 40)
    assert found["cone"] == (30, 15, 60, 35)


def test_a_few_pixels_are_not_a_box():
    pixels = painted({})
    pixels[7, 9] = np.array(NAMES["cone"]) / 255
    assert annotations.boxes(pixels, NAMES)["cone"] is None
