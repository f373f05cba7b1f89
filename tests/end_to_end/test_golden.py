"""Every recorded call through the whole runtime. The errors are printed as a table at the end of the module."""

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


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle)


@pytest.fixture(scope="module")
def table():
    """Rows of (case, quantity, error, allowed), printed when the module is done."""
    rows = []
    yield rows
    width = max(len(row[0]) for row in rows)
    print("\n\ngolden vectors, this runtime against the published code")
    for case, quantity, error, allowed in rows:
        print(f"  {case:{width}}  {quantity:24} {error:10.3g}  allowed {allowed:g}")


@pytest.mark.parametrize("name", TRANSFORMER)
def test_velocity(name, pipe, table):
    vectors = np.load(GOLDEN / f"{name}.npz")
    got = pipe.velocity(vectors["samples"], vectors["timesteps"], vectors["text"], vectors["text_mask"])
    error = relative(got, vectors["velocity"])
    table.append((name, "velocity, relative", error, 1e-5))
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
    table.append((name, "latents, relative", error, 1e-4))
    assert error < 1e-4
    if "camera_pose" in name:
        assert len(out.images) == 0
        expected = framert.Cameras.from_rays(vectors["target_latents"])
        np.testing.assert_allclose(out.cameras.camera_to_world, expected.camera_to_world, atol=1e-3)
        return
    mean_square = np.mean((out.pixels.astype(np.float64) - vectors["images"]) ** 2)
    psnr = float(-10 * np.log10(mean_square))
    table.append((name, "pixels, dB (at least)", psnr, 80))
    assert psnr > 80
    assert [image.size for image in out.images] == [(call["width"], call["height"])] * len(vectors["images"])
