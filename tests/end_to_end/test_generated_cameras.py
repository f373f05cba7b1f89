"""Cameras of generated ray frames are relative to view 0, whether its rays were given or generated."""

from pathlib import Path

import numpy as np
import pytest

import framert

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = [GOLDEN / f"input_{index}.png" for index in range(2)]
VIEWS = framert.Cameras.orbit([0, 40], [10, 30], [1.5, 1.5])
SIDE = 64


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


def test_one_generated_camera_is_relative_to_the_given_first_one(pipe):
    out = pipe.generate(
        prompt="[[multiview]]", images=INPUTS, mask=[0, 0, 0, 1], cameras=VIEWS, size=(SIDE, SIDE), steps=2
    )
    assert len(out.cameras) == 1
    # The first view's own rays put back in front: both are then in one world, whose origin is the first camera.
    both = framert.Cameras.from_rays(np.concatenate([VIEWS.rays(SIDE // 8)[:1], out.latents]))
    np.testing.assert_allclose(out.cameras.camera_to_world, both.camera_to_world[1:], atol=1e-5)
    assert np.abs(out.cameras.camera_to_world[0] - np.eye(4)).max() > 0.1


def test_a_generated_first_camera_is_where_the_world_begins(pipe):
    out = pipe.generate(prompt="[[multiview]]", images=INPUTS, mask=[0, 1, 0, 1], multiview=True, size=(SIDE, SIDE),
                        steps=2)  # fmt: skip
    assert len(out.cameras) == 2
    np.testing.assert_array_equal(out.cameras.camera_to_world[0], np.eye(4))
