"""What precision and reuse cost the picture in backend "triton": distances to fp32 on held-out Blocks scenes.

    python benchmarks/bench_triton_quality.py [models/blocks] [--scenes 4] [--steps 20] [--impl reference] [--rows]

Velocity errors are relative L2 distances on the way of the fp32 run, at its own latents, by noise level; latents are
compared after the full solver from the same noise, pixels behind the autoencoder too. What is printed are means over
scenes and tasks; --rows appends quantiles to benchmarks/results/triton_quality.csv. Nothing is timed.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "blocks"))

from frames import SceneFrames, caption, scene_frames
from PIL import Image

import framert
from framert.runtime.bench.quality import decibels, psnr
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
BENCH = "triton_quality"
PRECISIONS = ("bf16", "fp16", "int8", "fp8")
REUSES = (2, 4)
LEVELS = (0.95, 0.7, 0.4, 0.1)  # noise levels, 1 is all noise
GIVEN = {"image_to_depth": "picture", "depth_to_image": "depth", "edit": "picture", "text_to_image": None}


def requests(frames: SceneFrames) -> dict[str, dict[str, Any]]:
    """Return what to ask of every task of GIVEN for one scene."""
    asked: dict[str, dict[str, Any]] = {}
    for task, name in GIVEN.items():
        asked[task] = {} if name is None else {"images": [_picture(frames, name)]}
        if task != "image_to_depth":
            asked[task]["prompt"] = frames.story.edit.instruction if task == "edit" else caption(frames.story.scene)
    return asked


def _picture(frames: SceneFrames, name: str) -> Image.Image:
    return Image.fromarray(np.round(frames.pictures[name] * 255).astype(np.uint8))


def velocity_errors(exact: framert.Pipeline, other: framert.Pipeline, latents: np.ndarray) -> dict[float, float]:
    """Return the relative L2 error of one frame's velocity by noise level; text is drawn, the same for both."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(latents.shape).astype(np.float32)
    text = random.standard_normal((1, 12, exact.manifest.model.text_width)).astype(np.float32)
    errors = {}
    for level in LEVELS:
        sample = ((1 - level) * latents + level * noise)[None]
        call = (sample, np.full(len(latents), 1000 * level, np.float32), text, np.ones((1, 12)))
        expected = exact.velocity(*call).astype(np.float64)
        errors[level] = float(np.linalg.norm(other.velocity(*call) - expected) / np.linalg.norm(expected))
    return errors


def compare(bundle: Path, scenes: int, steps: int, impl: str) -> list[dict[str, Any]]:
    """Return one record per precision and per reuse: every figure as the list of its samples."""
    exact = framert.load(bundle, backend="triton", impl=impl, precision="fp32")
    asked = [requests(scene_frames(seed, exact.manifest.native_side)) for seed in range(scenes)]
    runs = [(task, seed, request) for seed, tasks in enumerate(asked) for task, request in tasks.items()]
    truth = [exact.run(task, seed=seed, steps=steps, **request) for task, seed, request in runs]

    def record(name: str, pipe: framert.Pipeline, reuse: int) -> dict[str, Any]:
        by_task: dict[str, list[float]] = {}
        pixels = []
        for (task, seed, request), expected in zip(runs, truth, strict=True):
            if reuse == 1 or "images" in request:
                result = pipe.run(task, seed=seed, steps=steps, reuse=reuse, **request)
                span = float(np.ptp(expected.latents))
                by_task.setdefault(task, []).append(decibels(result.latents, expected.latents, span))
                pixels.append(psnr(result, expected))
        made: dict[str, Any] = {
            "name": name,
            "latents_psnr": by_task,
            "pixels_psnr": pixels,
        }
        if reuse == 1:
            errors = [velocity_errors(exact, pipe, each.latents) for each in truth[:4]]
            made["velocity"] = {level: [each[level] for each in errors] for level in LEVELS}
        return made

    rows = [
        record(precision, framert.load(bundle, backend="triton", impl=impl, precision=precision), 1)
        for precision in PRECISIONS
    ]
    return rows + [record(f"fp32, reuse={reuse}", exact, reuse) for reuse in REUSES]


def rows_of(records: Iterable[dict[str, Any]], environment: Environment, case: str) -> list[Row]:
    """Return the rows of some records; ``case`` says what they were measured on."""

    def row(impl: str, where: str, metric: str, unit: str, samples: list[float]) -> Row:
        return environment.row(bench=BENCH, impl=impl, case=where, metric=metric, unit=unit, samples=samples)

    rows = []
    for record in records:
        name = record["name"]
        for task, samples in record["latents_psnr"].items():
            rows.append(row(name, f"{task}; {case}", "latents_psnr", "dB", samples))
        rows.append(row(name, f"all tasks; {case}", "pixels_psnr", "dB", record["pixels_psnr"]))
        for level, samples in record.get("velocity", {}).items():
            rows.append(row(name, f"noise {level}; {case}", "velocity_error", "relative L2", samples))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, nargs="?", default=ROOT / "models" / "blocks", help="a bundle or checkpoint"
    )
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--impl", default="auto", help="as framert.load takes it; reference runs without a GPU")
    parser.add_argument("--json", action="store_true", help="print records instead of a table")
    parser.add_argument("--rows", action="store_true", help=f"append to benchmarks/results/{BENCH}.csv")
    options = parser.parse_args()
    try:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() and options.impl != "reference" else None
        environment = Environment.capture(ROOT, threads=torch.get_num_threads(), device=device, record=options.rows)
        records = compare(options.model, options.scenes, options.steps, options.impl)
        if options.rows:
            case = f"{options.model.name}, {options.scenes} scenes, {options.steps} steps, impl {options.impl}"
            environment.append(f"{BENCH}.csv", rows_of(records, environment, case))
    except FramertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(records, indent=1))
        return 0
    for record in records:
        errors = "  ".join(f"{np.mean(error):.2%} at {level}" for level, error in record.get("velocity", {}).items())
        velocity = f"velocity off by {errors}" if errors else ""
        latents = "  ".join(f"{task} {np.mean(value):.1f}" for task, value in record["latents_psnr"].items())
        pixels = f"pixels {np.mean(record['pixels_psnr']):.1f} dB"
        print(f"{record['name']:14}  {pixels}  latents {latents} dB  {velocity}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
