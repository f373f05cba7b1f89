"""Cameras: the golden ray frames, and back from rays, clean and noisy."""

import json
from pathlib import Path

import numpy as np
import pytest

from framert.runtime.camera_errors import centre_errors, rotation_errors
from framert.runtime.cameras import Cameras
from framert.runtime.errors import TaskError

GOLDEN = Path(__file__).parents[1] / "golden"


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    return turn * np.linalg.det(turn)


def random_cameras(views: int, seed: int = 0) -> Cameras:
    """Any poses, each camera with an off-centre lens of its own."""
    rng = np.random.default_rng(seed)
    pose = np.tile(np.eye(4), (views, 1, 1))
    pose[:, :3, :3] = [random_rotation(rng) for _ in range(views)]
    pose[:, :3, 3] = rng.uniform(-2, 2, (views, 3))
    intrinsics = np.tile(np.eye(3), (views, 1, 1))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = rng.uniform(0.7, 2, (2, views))
    intrinsics[:, :2, 2] = rng.uniform(0.4, 0.6, (views, 2))
    return Cameras.from_matrices(pose, intrinsics)


def orbit(views: int = 3) -> Cameras:
    return Cameras.orbit([20.0 * view for view in range(views)], [5.0 * view for view in range(views)], [1.5] * views)


@pytest.mark.parametrize("name", ["image_to_multiview", "text_to_multiview"])
def test_rays_are_the_golden_condition_frames(name):
    call = json.loads((GOLDEN / f"pipeline_{name}.json").read_text())
    with np.load(GOLDEN / f"pipeline_{name}.npz") as file:
        expected = file["all_latents_over_1_658"][0, 1::2] * 1.658
    angles = (call[f"multiview_{part}"] for part in ("azimuths", "elevations", "distances"))
    found = Cameras.orbit(*angles).rays(8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_orbit_looks_at_the_origin_with_up_up():
    cameras = Cameras.orbit([0, 30, 200], [0, -40, 80], [1, 2, 3])
    right, down, ahead, centre = np.moveaxis(cameras.camera_to_world[:, :3], 2, 0)
    distance = np.array([1.0, 2, 3])
    np.testing.assert_allclose(centre + distance[:, None] * ahead, 0, atol=1e-12)
    np.testing.assert_allclose(right[:, 2], 0, atol=1e-12)
    assert (down[:, 2] < 0).all()
    np.testing.assert_allclose(centre[0], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("elevation", [90, -90])
def test_orbit_at_the_poles_is_a_rotation(elevation):
    cameras = Cameras.orbit([0], [elevation], [2])
    np.testing.assert_allclose(cameras.camera_to_world[0, :3, 3], [0, 0, np.sign(elevation) * 2], atol=1e-12)


def test_rays_do_not_depend_on_the_world():
    cameras, rng = random_cameras(4), np.random.default_rng(5)
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = random_rotation(rng), rng.standard_normal(3)
    elsewhere = Cameras.from_matrices(moved @ cameras.camera_to_world, cameras.intrinsics)
    np.testing.assert_allclose(elsewhere.rays(4), cameras.rays(4), atol=1e-5)
    np.testing.assert_allclose(elsewhere.relative().camera_to_world, cameras.relative().camera_to_world, atol=1e-12)


def test_rays_pass_through_the_points_that_project_to_them():
    """A point seen at a pixel's centre lies on that pixel's ray: checks axes, intrinsics and layout together."""
    cameras = random_cameras(3).relative()
    side, rng = 6, np.random.default_rng(1)
    frames = cameras.rays(side) / 1.658
    flip = np.diag([-1.0, -1.0, 1.0])
    for pose, intrinsics, frame in zip(cameras.camera_to_world, cameras.intrinsics, frames, strict=True):
        row, column = rng.integers(0, side, 2)
        pixel = np.array([(column + 0.5) / side, (row + 0.5) / side, 1])
        point = pose[:3, :3] @ (np.linalg.inv(intrinsics) @ pixel * rng.uniform(1, 4)) + pose[:3, 3]
        direction, moment = frame[:3, row, column], frame[3:6, row, column]
        np.testing.assert_allclose(np.cross(flip @ point, direction), moment, atol=1e-5)
        assert np.dot(flip @ (point - pose[:3, 3]), direction) > 0
        np.testing.assert_array_equal(frame[6:12], frame[:6])
        np.testing.assert_array_equal(frame[12:], frame[:4])


@pytest.mark.parametrize("side", [2, 4, 8, 64])
@pytest.mark.parametrize("known", [True, False], ids=["focal known", "focal unknown"])
def test_cameras_come_back_from_their_rays(side, known):
    cameras = orbit(4)
    found = Cameras.from_rays(cameras.rays(side), focal=1.3887 if known else None)
    np.testing.assert_allclose(found.camera_to_world, cameras.relative().camera_to_world, atol=1e-5)
    np.testing.assert_allclose(found.intrinsics, cameras.intrinsics, atol=1e-5)
    assert found.residual.max() < 1e-6
    np.testing.assert_array_equal(found.camera_to_world[0], np.eye(4))


def test_cameras_without_the_first_view_stay_in_its_world():
    """What is left when view 0's rays are given ones: the later cameras must still be relative to it."""
    cameras = orbit(4)
    found = Cameras.from_rays(cameras.rays(8)[2:], rebase=False)
    np.testing.assert_allclose(found.camera_to_world, cameras.relative().camera_to_world[2:], atol=1e-5)
    rebased = Cameras.from_rays(cameras.rays(8)[2:])
    np.testing.assert_allclose(rebased.camera_to_world, cameras[2:].relative().camera_to_world, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_any_intrinsics_come_back_from_their_rays(seed):
    cameras = random_cameras(3, seed)
    found = Cameras.from_rays(cameras.rays(8), focal=None)
    np.testing.assert_allclose(found.camera_to_world, cameras.relative().camera_to_world, atol=1e-5)
    np.testing.assert_allclose(found.intrinsics, cameras.intrinsics, atol=1e-5)


@pytest.mark.parametrize("known", [True, False], ids=["focal known", "focal unknown"])
def test_noise_moves_cameras_in_proportion(known):
    """64 rays of 16 noisy channels: the error stays below the noise of a single channel, at every strength."""
    cameras, rng = orbit(4), np.random.default_rng(0)
    clean = cameras.rays(8)
    for strength in (0.003, 0.01, 0.03):
        noisy = clean + strength * rng.standard_normal(clean.shape)
        found = Cameras.from_rays(noisy, focal=1.3887 if known else None)
        assert np.deg2rad(rotation_errors(found, cameras)).max() < (1 if known else 3) * strength
        centres = found.camera_to_world[:, :3, 3] - cameras.relative().camera_to_world[:, :3, 3]
        assert np.linalg.norm(centres, axis=-1).max() < 3 * strength
        assert (found.residual > 0.1 * strength).all()
        assert (found.residual < 3 * strength).all()


@pytest.mark.parametrize("focal", [1.3887, None])
def test_rays_of_no_camera_still_give_rigid_poses(focal):
    noise = np.random.default_rng(0).standard_normal((20, 16, 8, 8))
    found = Cameras.from_rays(noise, focal=focal)
    assert np.isfinite(found.camera_to_world).all()
    assert found.residual.min() > 0.1


def test_parallel_rays_have_a_centre_too():
    rays = np.zeros((1, 16, 4, 4))
    rays[:, [2, 8, 14]] = 1.658
    np.testing.assert_allclose(Cameras.from_rays(rays).camera_to_world[0], np.eye(4))
    with pytest.raises(TaskError, match="give focal"):
        Cameras.from_rays(rays, focal=None)


def test_json_keeps_every_bit():
    for cameras in (random_cameras(3), Cameras.from_rays(orbit().rays(4))):
        back = Cameras.from_json(cameras.to_json())
        for name in ("camera_to_world", "focal", "principal", "residual"):
            np.testing.assert_array_equal(getattr(back, name), getattr(cameras, name))


def test_slices_and_length():
    cameras = orbit(4)
    assert len(cameras) == 4
    assert len(cameras[1:3]) == 2
    np.testing.assert_array_equal(cameras[1:3].camera_to_world, cameras.camera_to_world[1:3])


def test_cameras_cannot_be_changed_afterwards():
    source = np.tile(np.eye(4), (2, 1, 1))
    cameras = Cameras.from_matrices(source)
    source[0, 0, 3] = 5
    assert cameras.camera_to_world[0, 0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        cameras.camera_to_world[0, 0, 3] = 1


def test_rotation_errors_are_the_angles_turned():
    truth = Cameras.orbit([0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1])
    turned = Cameras.orbit([0, 1e-4, 30, 180], [0, 0, 0, 0], [1, 1, 1, 1])
    np.testing.assert_allclose(rotation_errors(turned, truth), [1e-4, 30, 180], rtol=1e-6)


def test_centre_errors_ignore_scale_and_see_a_moved_camera():
    truth = Cameras.orbit([0, 40, 80, 120], [0, 20, -10, 5], [1.5] * 4)
    larger = Cameras.orbit([0, 40, 80, 120], [0, 20, -10, 5], [4.5] * 4)
    np.testing.assert_allclose(centre_errors(larger, truth), 0, atol=1e-9)
    assert centre_errors(Cameras.orbit([0, 40, 80, 220], [0, 20, -10, 5], [1.5] * 4), truth).max() > 0.3


@pytest.mark.parametrize("measure", [rotation_errors, centre_errors])
def test_errors_need_the_same_views(measure):
    with pytest.raises(TaskError, match="same views"):
        measure(orbit(3), orbit(2))


RIGID = np.tile(np.eye(4), (2, 1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cameras.orbit([0, 1], [0], [1, 1]), "2 and 1 and 2"),
        (lambda: Cameras.orbit([], [], []), "at least one"),
        (lambda: Cameras.orbit([0], [np.nan], [1]), "finite"),
        (lambda: Cameras.orbit([0], [0], [0]), "above 0"),
        (lambda: Cameras.orbit([0], [0], [-1]), "above 0"),
        (lambda: Cameras.orbit(["x"], [0], [1]), "lists of numbers"),
        (lambda: Cameras.orbit([[0]], [[0]], [[1]]), "one of each"),
        (lambda: Cameras.orbit([0], [0], [1], focal=0), "focal"),
        (lambda: Cameras.orbit([0], [0], [1], focal=np.inf), "focal"),
        (lambda: Cameras.from_matrices(np.eye(4)), "shape"),
        (lambda: Cameras.from_matrices(np.zeros((0, 4, 4))), "at least one"),
        (lambda: Cameras.from_matrices(np.zeros((2, 4, 4))), "rotation"),
        (lambda: Cameras.from_matrices(RIGID * [1, 1, -1, 1]), "view 0 is not a rigid pose"),
        (lambda: Cameras.from_matrices(RIGID * 2), "rotation"),
        (lambda: Cameras.from_matrices(RIGID * np.nan), "finite"),
        (lambda: Cameras.from_matrices(RIGID, np.eye(3)[None]), "shape"),
        (lambda: Cameras.from_matrices(RIGID, np.diag([500.0, 500, 1])), "pixels"),
        (lambda: Cameras.from_matrices(RIGID, [[1, 0.2, 0.5], [0, 1, 0.5], [0, 0, 1]]), "skew"),
        (lambda: Cameras.from_matrices("text"), "arrays of numbers"),
        (lambda: Cameras(RIGID, np.ones((1, 2)), np.ones((2, 2))), "2 cameras need"),
        (lambda: Cameras(RIGID, np.ones((2, 2)), np.ones((2, 2)), np.ones(3)), "residual"),
        (lambda: Cameras.from_rays(np.zeros((16, 8, 8))), "views, 16, side, side"),
        (lambda: Cameras.from_rays(np.zeros((1, 16, 8, 4))), "views, 16, side, side"),
        (lambda: Cameras.from_rays(np.full((1, 16, 8, 8), np.nan)), "finite"),
        (lambda: Cameras.from_rays(np.zeros((1, 16, 8, 8))), "without a direction"),
        (lambda: Cameras.from_rays(np.ones((1, 16, 1, 1)), focal=None), "focal"),
        (lambda: Cameras.from_json("{"), "to_json"),
        (lambda: Cameras.from_json("[]"), "to_json"),
        (lambda: Cameras.from_json('{"cameras": []}'), "shape"),
        (lambda: Cameras.from_json('{"cameras": [{"camera_to_world": [[1]]}]}'), "to_json"),
    ],
)
def test_bad_cameras_are_named(make, message):
    with pytest.raises(TaskError, match=message):
        make()
