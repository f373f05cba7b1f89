"""Every recorded call from prompt to pixels through engines on an emulated GPU."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import framert

GOLDEN = Path(__file__).parents[2] / "golden"
PIPELINES = sorted(path.stem for path in GOLDEN.glob("pipeline_*.npz"))


@pytest.fixture(scope="module")
def engines(golden_bundle, build_engines, tmp_path_factory):
    from framert.runtime.profiles import Capacity

    output = tmp_path_factory.mktemp("golden") / "golden.engines"
    return build_engines(golden_bundle, output, capacity=Capacity(tokens=(64, 512), sequences=6, side=96))


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(name, machine, engines, record_property):
    made = machine()
    call = json.loads((GOLDEN / f"{name}.json").read_text())
    vectors = np.load(GOLDEN / f"{name}.npz")
    cameras = None
    if call.get("is_multiview"):
        angles = (call[f"multiview_{angle}"] for angle in ("azimuths", "elevations", "distances"))
        cameras = framert.Cameras.orbit(*angles)
    noise = vectors["noise"]
    out = framert.load(engines, backend="tensorrt").generate(
        prompt=call["prompt"],
        negative_prompt=call.get("negative_prompt", ""),
        images=[GOLDEN / image for image in call["images"]],
        mask=call.get("denoise_mask", [1]),
        cameras=cameras,
        steps=call["num_inference_steps"],
        guidance=call["guidance_scale"],
        size=(call["width"], call["height"]),
        noise=noise[0] if noise.ndim == 5 else noise,
    )
    exact = vectors["target_latents"].astype(np.float64)
    error = float(np.linalg.norm(out.latents - exact) / np.linalg.norm(exact))
    record_property("golden", (f"tensorrt, emulated: {name}", "latents, relative", error, 1e-4))
    assert error < 1e-4
    assert made.cuda.launches == call["num_inference_steps"] - 2  # all but the first of each way are replays
    if out.images:
        assert float(-10 * np.log10(np.mean((out.pixels.astype(np.float64) - vectors["images"]) ** 2))) > 80
