"""What each task of Blocks is asked for a scene, and how its result is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import maps
import numpy as np
import scoring
from edit_scores import edit_score
from frames import MAX_THINGS, SceneFrames, caption
from judge import open_judge
from PIL import Image
from world import Float

import framert
from framert.runtime.camera_errors import rotation_errors

Scores = dict[str, float]
CHECK_TASK = "image_to_depth"
COPY = 25.0  # dB from which on a picture is the other one; pictures of one thing in two places have less


@dataclass(frozen=True, slots=True)
class Case:
    """One request and how its result is scored.

    check: of the result, a request for CHECK_TASK that its score needs too; None where nothing has to be estimated.
    """

    request: dict[str, Any]
    score: Callable[[framert.Result], Scores]
    check: "Callable[[framert.Result], Case] | None" = None


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
        check = partial(_depth_check, frames=frames) if kind == "depth" else None
        return Case(request, lambda result: picture_scores(result.pixels[0], frames), check)
    references = [f"reference{index}" for index in range(len(scene.things))]
    captions = [f"a {thing.shape}" for thing in scene.things]
    cases: dict[str, Callable[[], Case]] = {
        "text_to_image": lambda: Case(
            {"prompt": words}, lambda result: _objects(result.pixels[0], frames)
        ),
        "deblur": lambda: Case({"images": given("blur")}, lambda result: gain(result.pixels[0], frames, "blur", None)),
        "inpaint": lambda: Case(
            {"images": given("picture"), "hole": Image.fromarray(frames.hole), "prompt": words},
            lambda result: _hole_scores(result.pixels[0], frames),
        ),
        "edit": lambda: Case(
            {"images": given("picture"), "prompt": frames.story.edit.instruction},
            lambda result: edit_score(result.pixels[0], frames),
        ),
        "identity": lambda: Case(
            {"images": given(*references), "captions": captions, "prompt": caption(scene, plain=len(references))},
            lambda result: _placed(result.pixels[0], frames),
        ),
        "subject": lambda: Case(
            {
                "images": given("reference0"), "captions": captions[:1], "item": scene.things[0].shape,
                "prompt": caption(scene, plain=1),
            },
            lambda result: _placed(result.pixels[0], frames, item=True),
        ),
        "image_to_multiview": lambda: Case(
            {"images": given("picture"), "cameras": cameras_of(frames, 2), "prompt": words},
            lambda result: _view_scores(result.pixels[0], frames),
        ),
        "text_to_multiview": lambda: Case(
            {"cameras": cameras_of(frames, 2), "prompt": words},
            lambda result: {
                "colours": float(np.mean([scoring.colours_shown(each, frames)["colours"] for each in result.pixels])),
                "things": float(np.mean([_objects(each, frames)["things"] for each in result.pixels])),
            },
        ),
        "camera_pose": lambda: Case({"images": given("picture", "view1")}, lambda result: _pose_scores(result, frames)),
    }  # fmt: skip
    return cases[task]()


def _objects(picture: Float, frames: SceneFrames, *, item: bool = False) -> Scores:
    """Return which of the scene's things a picture shows, and whether it shows them all: objects.

    colours: share of the things whose colour is there; things: whose colour and shape are there; item: if asked for,
    whether the first is.
    """
    present = open_judge(side=picture.shape[1]).present(picture, frames.story.scene.things)
    scores = {"objects": float(all(present)), "things": float(np.mean(present))}
    return scoring.colours_shown(picture, frames) | scores | ({"item": float(present[0])} if item else {})


def _placed(picture: Float, frames: SceneFrames, *, item: bool = False) -> Scores:
    """Return ``_objects`` of references' things in a new scene; a copy of a reference shows none of them."""
    found = _objects(picture, frames, item=item)
    references = (frames.pictures[f"reference{index}"] for index in range(len(frames.story.scene.things)))
    copied = any(scoring.decibels(picture, reference) >= COPY for reference in references)
    return {name: 0.0 if copied else value for name, value in found.items()}


def picture_scores(picture: Float, frames: SceneFrames) -> Scores:
    """Scores of a picture that was made from a map of the scene: what it shows, and where."""
    found = scoring.colours_in_place(picture, frames) | {"mask_iou": scoring.masks_kept(picture, frames)}
    objects = _objects(picture, frames)
    return found | {name: objects[name] for name in ("objects", "things")}


def _depth_check(result: framert.Result, frames: SceneFrames) -> Case:
    """Have the depth of a picture estimated that was made from a depth map, and compare with the map."""

    def score(estimate: framert.Result) -> Scores:
        return {"reestimated_abs_rel": _map_scores("depth", estimate, frames)["abs_rel"]}

    return Case({"images": [result.images[0]]}, score)


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


def gain(picture: Float, frames: SceneFrames, start: str, where: scoring.Mask | None) -> Scores:
    """PSNR, and by how much it beats the damaged picture's."""
    truth = frames.pictures["picture"]
    reached = scoring.decibels(picture, truth, where)
    return {"psnr": reached, "gain_db": reached - scoring.decibels(frames.pictures[start], truth, where)}


def _hole_scores(picture: Float, frames: SceneFrames) -> Scores:
    """``gain`` over the grey hole, and over the smoothest surface that its rim can be filled with."""
    truth, fill = frames.pictures["picture"], scoring.smooth_fill(frames.pictures["picture"], frames.hole)
    scores = gain(picture, frames, "hole", frames.hole)
    return scores | {"gain_over_fill_db": scores["psnr"] - scoring.decibels(fill, truth, frames.hole)}


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


JUDGED = frozenset(
    task for task in TASKS if task.endswith("_to_image") or task in ("edit", "identity", "subject", "text_to_multiview")
)  # whose scores take a trained judge


def truths_of(task: str, frames: SceneFrames) -> tuple[str, ...]:
    """Return the names of the pictures that a result is to look like; none where many are right."""
    exact = {"edit": ("edited",), "image_to_multiview": ("view1",), "text_to_multiview": ("picture", "view1"),
             "text_to_image": (), "camera_pose": ()}  # fmt: skip
    if task in exact:
        return exact[task]
    return (task.removeprefix("image_to_"),) if task.startswith("image_to_") else ("picture",)


def pictures_of(task: str) -> set[str]:
    """Return the names of the scene's pictures that a task's case reads, so that no others need be rendered."""
    if task == "camera_pose":
        return {"picture", "view1"}
    if task in ("image_to_multiview", "text_to_multiview"):
        return {"picture", "view1"}
    if task in ("identity", "subject"):
        return {"picture", *(f"reference{index}" for index in range(MAX_THINGS))}
    kinds = {"deblur": "blur", "inpaint": "hole", "edit": "edited", "text_to_image": "picture"}
    kind = kinds.get(task) or task.removeprefix("image_to_").removesuffix("_to_image")
    return {"picture", kind}
