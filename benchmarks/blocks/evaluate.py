"""Score every task of a bundle on held-out Blocks scenes, through framert's public interface alone.

    python benchmarks/blocks/evaluate.py BUNDLE --scenes 200 --seed 0 --steps 30 [--json [FILE]] [--tasks NAME ...]

The table goes to stdout, progress to stderr. A floor that is not met is reported and is no error (exit code 0).
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maps
import numpy as np
import scoring
from floors import format_table
from frames import SceneFrames, caption, scene_frames
from PIL import Image
from world import FIRST_TRAINING_SEED, Float

import framert
from framert.runtime.camera_errors import rotation_errors

AT_ONCE = 32  # requests handed to the engine together
Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Case:
    """One request and how its result is scored."""

    request: dict[str, Any]
    score: Callable[[framert.Result], Scores]


MEDIANS = {"rotation_degrees", "identity_degrees", "centre_error"}


def picture_of(pixels: Float) -> Image.Image:
    """Return the 8-bit picture of (h, w, 3) in 0..1."""
    return Image.fromarray(np.round(pixels * 255).astype(np.uint8))


def cameras_of(frames: SceneFrames, count: int) -> framert.Cameras:
    """Return the cameras of the scene's first ``count`` views."""
    views = frames.story.views[:count]
    return framert.Cameras.orbit(
        [view.azimuth for view in views], [view.elevation for view in views], [view.distance for view in views]
    )


def case_of(task: str, frames: SceneFrames) -> Case:
    """Return what to ask of ``task`` for a scene."""
    scene, pictures = frames.story.scene, frames.pictures
    words = caption(scene)
    legend = {thing.name: colour for thing, colour in zip(scene.things, frames.story.colours, strict=True)}
    extra = {"colors": legend} if "semantic" in task or "boxes" in task else {}

    def given(*names: str) -> list[Image.Image]:
        return [picture_of(pictures[name]) for name in names]

    if task.startswith("image_to_") and task != "image_to_multiview":
        kind = task.removeprefix("image_to_")
        return Case({"images": given("picture"), **extra}, lambda result: _map_scores(kind, result, frames))
    if task.endswith("_to_image") and task != "text_to_image":
        kind = task.removesuffix("_to_image")
        request = {"images": given(kind), "prompt": words, **extra}
        return Case(request, lambda result: scoring.colours_in_place(result.pixels[0], frames))
    references = [f"reference{index}" for index in range(len(scene.things))]
    captions = [f"a {thing.shape}" for thing in scene.things]
    cases: dict[str, Case] = {
        "text_to_image": Case({"prompt": words}, lambda result: scoring.colours_shown(result.pixels[0], frames)),
        "deblur": Case({"images": given("blur")}, lambda result: _gain(result.pixels[0], frames, "blur", None)),
        "inpaint": Case(
            {"images": given("picture"), "hole": Image.fromarray(frames.hole), "prompt": words},
            lambda result: _gain(result.pixels[0], frames, "hole", frames.hole),
        ),
        "edit": Case(
            {"images": given("picture"), "prompt": frames.story.edit.instruction},
            lambda result: scoring.edit_score(result.pixels[0], frames),
        ),
        "identity": Case(
            {"images": given(*references), "captions": captions, "prompt": caption(scene, plain=len(references))},
            lambda result: scoring.colours_shown(result.pixels[0], frames),
        ),
        "subject": Case(
            {
                "images": given("reference0"), "captions": captions[:1], "item": scene.things[0].shape,
                "prompt": caption(scene, plain=1),
            },
            lambda result: scoring.colours_shown(result.pixels[0], frames),
        ),
        "image_to_multiview": Case(
            {"images": given("picture"), "cameras": cameras_of(frames, 2), "prompt": words},
            lambda result: _view_scores(result.pixels[0], frames),
        ),
        "text_to_multiview": Case(
            {"cameras": cameras_of(frames, 2), "prompt": words},
            lambda result: {
                "colours": float(np.mean([scoring.colours_shown(each, frames)["colours"] for each in result.pixels]))
            },
        ),
        "camera_pose": Case({"images": given("picture", "view1")}, lambda result: _pose_scores(result, frames)),
    }  # fmt: skip
    return cases[task]


def _map_scores(kind: str, result: framert.Result, frames: SceneFrames) -> Scores:
    """Scores of what was estimated from the picture."""
    names = [thing.name for thing in frames.story.scene.things]
    if kind == "depth":
        assert result.depth is not None
        truth = frames.pictures["depth"][..., 0]
        depth, true_depth = maps.grey_to_depth(result.depth), maps.grey_to_depth(truth)
        near = truth > 0.02
        relative = np.abs(depth[near] - true_depth[near]) / true_depth[near]
        return {"error": float(np.abs(result.depth - truth).mean()), "abs_rel": float(relative.mean())}
    if kind == "semantic":
        assert result.masks is not None
        truths = [frames.rendering.thing == index for index in range(len(names))]
        return {"iou": float(np.mean([scoring.overlap(result.masks[name], truth)
                                      for name, truth in zip(names, truths, strict=True)]))}  # fmt: skip
    if kind == "boxes":
        assert result.boxes is not None
        shape, truths = frames.rendering.thing.shape, maps.boxes_of(frames.rendering, len(names))
        pairs = zip((result.boxes[name] for name in names), truths, strict=True)
        overlaps = [scoring.overlap(scoring.box_mask(a, shape), scoring.box_mask(b, shape)) for a, b in pairs]
        return {"iou": float(np.mean(overlaps))}
    return scoring.line_agreement(result.pixels[0], frames.pictures[kind])


def _gain(picture: Float, frames: SceneFrames, start: str, where: scoring.Mask | None) -> Scores:
    """PSNR, and by how much it beats the damaged picture's."""
    truth = frames.pictures["picture"]
    reached = scoring.decibels(picture, truth, where)
    return {"psnr": reached, "gain_db": reached - scoring.decibels(frames.pictures[start], truth, where)}


def _view_scores(picture: Float, frames: SceneFrames) -> Scores:
    truth = frames.pictures["view1"]
    reached = scoring.decibels(picture, truth)
    return {"psnr": reached, "gain_over_copy_db": reached - scoring.decibels(frames.pictures["picture"], truth)}


def _pose_scores(result: framert.Result, frames: SceneFrames) -> Scores:
    """Errors of the second camera relative to the first; centre in units of the true distance between the two."""
    assert result.cameras is not None
    found, truth = result.cameras.relative(), cameras_of(frames, 2).relative()
    unturned = framert.Cameras.from_matrices([np.eye(4)] * 2)
    (_, centre), (_, true_centre) = found.camera_to_world[:, :3, 3], truth.camera_to_world[:, :3, 3]
    error = np.linalg.norm(centre - true_centre) / np.linalg.norm(true_centre)
    return {
        "rotation_degrees": float(rotation_errors(found, truth)[0]),
        "identity_degrees": float(rotation_errors(unturned, truth)[0]),
        "centre_error": float(error),
        "centre_accuracy_0.3": float(error <= 0.3),
    }


TASKS = (
    "text_to_image", *(f"image_to_{kind}" for kind in ("depth", "semantic", "boxes", "canny", "hed", "pose")),
    *(f"{kind}_to_image" for kind in ("depth", "semantic", "boxes", "canny", "hed", "pose")),
    "deblur", "inpaint", "edit", "identity", "subject", "image_to_multiview", "text_to_multiview", "camera_pose",
)  # fmt: skip


def evaluate(
    pipe: framert.Pipeline, tasks: list[str], scenes: list[SceneFrames], options: dict[str, Any]
) -> dict[str, Scores]:
    """Return {task: {metric: value}}, means over the scenes (medians where MEDIANS says so)."""
    engine, table = pipe.engine(), {}
    for number, task in enumerate(tasks, 1):
        rows: list[Scores] = []
        for at in range(0, len(scenes), AT_ONCE):
            cases = [case_of(task, frames) for frames in scenes[at : at + AT_ONCE]]
            tickets = [engine.submit(framert.Request(task=task, seed=at + index, **case.request, **options))
                       for index, case in enumerate(cases)]  # fmt: skip
            rows += [case.score(ticket.result()) for case, ticket in zip(cases, tickets, strict=True)]
            print(f"{task} ({number}/{len(tasks)}): {len(rows)} of {len(scenes)} scenes", file=sys.stderr)
        table[task] = {metric: float((np.median if metric in MEDIANS else np.mean)([row[metric] for row in rows]))
                       for metric in rows[0]}  # fmt: skip
        _add_ratios(table[task], scenes)
        table[task]["scenes"] = len(rows)
    return table


def _add_ratios(scores: Scores, scenes: list[SceneFrames]) -> None:
    """Add what is defined over all scenes: the error beside the best constant's, the rotation beside no rotation's."""
    if "abs_rel" in scores:
        depths = np.stack([frames.pictures["depth"][..., 0] for frames in scenes])
        scores["error_of_constant"] = float(np.abs(depths - np.median(depths)).mean())
        scores["error_over_constant"] = scores["error"] / scores["error_of_constant"]
    if "rotation_degrees" in scores:
        scores["rotation_over_identity"] = scores["rotation_degrees"] / scores["identity_degrees"]


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="scenes have seeds 1000 * seed and on")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, help="instead of each task's own")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print {task: {metric: value}} instead of the table, or write it to FILE beside the table",
    )
    given = parser.parse_args()
    if given.scenes < 1 or not 0 <= given.seed < FIRST_TRAINING_SEED // 1000 or given.scenes > 1000:
        parser.error(f"--scenes is 1 to 1000 and --seed 0 to {FIRST_TRAINING_SEED // 1000 - 1}: others are trained on")
    return given


def main() -> int:
    """Run the evaluation; 2 for a bundle that cannot be opened or run, which is named."""
    given = arguments()
    try:
        pipe = framert.load(given.bundle, threads=given.threads)
        side = pipe.manifest.native_side
        scenes = [scene_frames(1000 * given.seed + index, side) for index in range(given.scenes)]
        table = evaluate(pipe, given.tasks, scenes, {"steps": given.steps, "guidance": given.guidance})
    except (framert.FramertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(table, indent=1) if given.json == "-" else format_table(table))
    if given.json not in (None, "-"):
        Path(given.json).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
