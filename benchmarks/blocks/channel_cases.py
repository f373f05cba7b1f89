"""What each UniVG task of Blocks is asked for a scene, and how its result is scored."""

from collections.abc import Callable

import cases
import numpy as np
import scoring
from cases import Case, Scores, picture_of
from channel_edits import asked_change
from channel_frames import beyond, kept_part, layout_boxes, layout_legend
from edit_scores import change_score
from frames import SceneFrames, caption
from referring import Expression, draw_expression
from world import COLOURS, Float

import framert

SHARED = (
    "text_to_image",
    "identity",
    "image_to_depth",
    "image_to_pose",
    "inpaint",
)  # asked and scored as of OneDiffusion
TASKS = (*SHARED, "outpaint", "edit", "layout_to_image", "segment")
JUDGED = frozenset({"text_to_image", "identity", "edit", "layout_to_image"})  # whose scores take a trained judge


def case_of(task: str, frames: SceneFrames) -> Case:
    """Return what to ask of ``task`` for a scene."""
    if task in SHARED:
        return cases.case_of(task, frames)
    makers: dict[str, Callable[[SceneFrames], Case]] = {
        "outpaint": _outpaint, "edit": _edit, "layout_to_image": _layout, "segment": _segment,
    }  # fmt: skip
    return makers[task](frames)


def pictures_of(task: str) -> set[str]:
    """Return the names of the scene's pictures that a task's case reads, so that no others need be rendered."""
    if task == "identity":
        return cases.pictures_of(task)
    kinds = {"text_to_image": "picture", "image_to_depth": "depth", "image_to_pose": "pose", "inpaint": "hole",
             "outpaint": "canvas", "edit": "edited", "layout_to_image": "layout", "segment": "picture"}  # fmt: skip
    return {"picture", kinds[task]}


def truths_of(task: str, frames: SceneFrames) -> tuple[str, ...]:
    """Return the names of the pictures that a result is to look like; none where many are right."""
    if task == "edit":
        return (asked_change(frames.story).frames[1],)
    if task == "segment":
        return (f"mask{asked_expression(frames).thing}",)
    return {"image_to_depth": ("depth",), "image_to_pose": ("pose",), "text_to_image": ()}.get(task, ("picture",))


def asked_expression(frames: SceneFrames) -> Expression:
    """Return the phrase that evaluation asks to have segmented in a scene."""
    return draw_expression(frames.story.scene, np.random.default_rng([frames.story.seed, 0x5E6]))


def _outpaint(frames: SceneFrames) -> Case:
    picture = picture_of(frames.pictures["picture"])
    left, top, right, bottom = part = kept_part(frames.story.seed, picture.width)
    new = beyond(part, picture.width)
    request = {
        "images": [picture.crop(part)],
        "extend": (left, top, picture.width - right, picture.height - bottom),
        "prompt": caption(frames.story.scene),
    }
    return Case(request, lambda result: cases.gain(result.pixels[0], frames, "canvas", new))


def _edit(frames: SceneFrames) -> Case:
    change = asked_change(frames.story)
    request = {"images": [picture_of(frames.pictures[change.frames[0]])], "prompt": change.instruction}
    return Case(request, lambda result: change_score(result.pixels[0], frames, change))


def _layout(frames: SceneFrames) -> Case:
    story = frames.story
    boxes = layout_boxes(story, frames.rendering)
    colours = {name: colour for name, colour in layout_legend(story).items() if name in boxes}
    request = {"boxes": boxes, "colors": colours, "prompt": caption(story.scene)}
    return Case(request, lambda result: layout_score(result.pixels[0], frames))


def _segment(frames: SceneFrames) -> Case:
    meant = asked_expression(frames)

    def score(result: framert.Result) -> Scores:
        assert result.masks is not None
        return {"iou": scoring.overlap(result.masks[meant.text], frames.rendering.thing == meant.thing)}

    return Case({"images": [picture_of(frames.pictures["picture"])], "prompt": meant.text}, score)


def layout_score(picture: Float, frames: SceneFrames) -> Scores:
    """Return the share of things that are in their boxes: hits; and what is scored of other pictures from maps.

    A thing is in its box if the box shows at least half as much of its colour as the true thing covers of it, and if
    most of what the picture shows of the colour lies in the box.
    """
    things, classes, hits = frames.story.scene.things, scoring.colour_classes(picture), []
    for name, box in layout_boxes(frames.story, frames.rendering).items():
        index = next(index for index, thing in enumerate(things) if thing.name == name)
        inside = scoring.box_mask(box, classes.shape)
        shown = classes == list(COLOURS).index(things[index].colour)
        enough = (shown & inside).sum() >= 0.5 * (frames.rendering.thing == index).sum()
        hits.append(enough and (shown & inside).sum() > 0.5 * shown.sum())
    return {"hits": float(np.mean(hits)), **cases.picture_scores(picture, frames)}
