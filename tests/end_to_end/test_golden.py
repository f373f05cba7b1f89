"""Every recorded call through the whole runtime. pytest's summary ends with the table of errors (tests/conftest.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

import framert

GOLDEN = Path(__file__).parents[1] / "golden"
TRANSFORMER = sorted(path.stem for path in GOLDEN.glob("transformer_*.npz"))
PIPELINE = sorted(path.stem for path in GOLDEN.glob("pipeline_*.npz"))


def relative(got, exact):
    """Relative L2 distance in fp64."""
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


# Backend "triton" is held to them by its references on the CPU: the kernels are held to those.
BACKENDS = {"onnxruntime": {}, "triton": {"impl": "reference", "precision": "fp32"}}


@pytest.fixture(scope="module", params=BACKENDS)
def pipe(request, golden_bundle):
    pytest.importorskip(request.param)
    return framert.load(golden_bundle, backend=request.param, **BACKENDS[request.param])


@pytest.fixture
def table(record_property, pipe):
    """Call it with (case, quantity, error, allowed) to add a row to the table of the summary."""

    def add(case, quantity, error, allowed):
        # plain numbers: tests may run in another process than the summary
        record_property("golden", (f"{pipe.backend_name}: {case}", quantity, float(error), float(allowed)))

    return add


def cameras_of(frames):
    """Return poses (n, 4, 4), OpenCV axes, relative to the first: written apart from the runtime's, by other means.

    The centre solves the stacked equations [d]x c = -m of all rays; the rotation is the unit quaternion of the
    largest eigenvalue (Horn 1987) that turns the rays of a camera at rest, of focal length 1.3887, to the frame's.
    """
    poses = []
    for frame in np.asarray(frames, np.float64):
        side = frame.shape[-1]
        numbers = [frame[start::6].mean(axis=0).ravel() for start in range(6)]  # d, m, d, m, four of d, m
        d, m = np.stack(numbers[:3], axis=-1) * [-1, -1, 1], np.stack(numbers[3:], axis=-1) * [-1, -1, 1]
        length = np.linalg.norm(d, axis=-1, keepdims=True)
        d, m = d / length, m / length
        cross = np.stack([np.cross(np.eye(3), ray) for ray in d])  # row i: e_i x d, so c x d = sum_i c_i row i
        system = cross.transpose(0, 2, 1).reshape(-1, 3)
        centre = np.linalg.lstsq(system, m.ravel(), rcond=None)[0]
        row, column = np.mgrid[:side, :side] + 0.5
        still = np.stack([column.ravel() / side - 0.5, row.ravel() / side - 0.5, np.full(side**2, 1.3887)], axis=-1)
        still /= np.linalg.norm(still, axis=-1, keepdims=True)
        s = still.T @ d
        skew = [s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]]
        horn = np.block(
            [[np.trace(s), np.array(skew)[None]], [np.array(skew)[:, None], s + s.T - np.trace(s) * np.eye(3)]]
        )
        w, *v = np.linalg.eigh(horn)[1][:, -1]
        pose = np.eye(4)
        pose[:3, :3] = (w * w - np.dot(v, v)) * np.eye(3) + 2 * np.outer(v, v) + 2 * w * np.cross(np.eye(3), v)
        pose[:3, 3] = centre
        poses.append(pose)
    return np.linalg.inv(poses[0]) @ np.stack(poses)


def test_cameras_of_is_right_about_rays_that_are_known():
    cameras = framert.Cameras.orbit([0, 40, 200], [10, 30, -50], [1.5, 1.5, 2])
    np.testing.assert_allclose(cameras_of(cameras.rays(8)), cameras.relative().camera_to_world, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMER)
def test_velocity(name, pipe, table):
    vectors = np.load(GOLDEN / f"{name}.npz")
    got = pipe.velocity(vectors["samples"], vectors["timesteps"], vectors["text"], vectors["text_mask"])
    error = relative(got, vectors["velocity"])
    table(name, "velocity, relative", error, 1e-5)
    assert error < 1e-5


@pytest.mark.parametrize("name", PIPELINE)
def test_pipeline(name, pipe, table):
    call = json.loads((GOLDEN / f"{name}.json").read_text())
    vectors = np.load(GOLDEN / f"{name}.npz")
    mask = call.get("denoise_mask", [1])
    cameras = None
    if call.get("is_multiview"):
        cameras = framert.Cameras.orbit(
            azimuths=call["multiview_azimuths"],
            elevations=call["multiview_elevations"],
            distances=call["multiview_distances"],
        )
    noise = vectors["noise"]
    out = pipe.generate(
        prompt=call["prompt"],
        negative_prompt=call.get("negative_prompt", ""),
        images=[GOLDEN / image for image in call["images"]],
        mask=mask,
        cameras=cameras,
        steps=call["num_inference_steps"],
        guidance=call["guidance_scale"],
        size=(call["width"], call["height"]),
        noise=noise[0] if noise.ndim == 5 else noise,
    )
    error = relative(out.latents, vectors["target_latents"])
    table(name, "latents, relative", error, 1e-4)
    assert error < 1e-4
    if "camera_pose" in name:
        assert len(out.images) == 0
        found = out.cameras.camera_to_world
        np.testing.assert_allclose(found, cameras_of(out.latents), atol=1e-6)
        # Random changes of these latents by 1e-4, which is what they may differ by, move the poses by up to 1.5e-3.
        error = np.abs(found - cameras_of(vectors["target_latents"])).max()
        table(name, "cameras, largest entry", error, 2e-3)
        assert error < 2e-3
        assert np.abs(found[1] - np.eye(4)).max() > 0.1
        return
    mean_square = np.mean((out.pixels.astype(np.float64) - vectors["images"]) ** 2)
    psnr = float(-10 * np.log10(mean_square))
    table(name, "pixels, dB (at least)", psnr, 80)
    assert psnr > 80
    assert [image.size for image in out.images] == [(call["width"], call["height"])] * len(vectors["images"])
