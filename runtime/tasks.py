"""From a task of the table, or from raw frames, to one composition."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from framert.runtime import prompts
from framert.runtime.cameras import Cameras
from framert.runtime.colors import COLORS, check_legend
from framert.runtime.composition import Composition, check_cameras, check_list, compose, frame_kinds
from framert.runtime.errors import TaskError
from framert.runtime.images import ImageSource, read_image
from framert.runtime.task_table import EXTRAS, TASKS, Task, find_task

__all__ = ["EXTRAS", "TASKS", "Composition", "Task", "compose", "find_task", "plan"]

HOLE_GREY = 128  # what the model was trained to see where it is to fill
HOLE_WHITE = 128  # from this value on a pixel of the mask picture counts as white


def plan(
    task: str,
    *,
    images: Sequence[ImageSource] = (),
    prompt: str = "",
    colors: Mapping[str, str] | None = None,
    hole: ImageSource | None = None,
    captions: Sequence[str] | None = None,
    item: str | None = None,
    cameras: Cameras | None = None,
) -> Composition:
    """Compose a task of the table.

    Args:
        images: the given pictures. prompt: the caller's words, without the task's token.
        colors: {thing: colour name}. hole: of the size of the picture; white is filled, black kept.
        captions: one per given picture. item: what the given picture shows. cameras: one per view.
    Raises: TaskError for an unknown task, arguments it does not take or lacks, and wrong counts; ImageError.
    """
    row = find_task(task)
    given = {"colors": colors, "hole": hole, "captions": captions, "item": item, "cameras": cameras}
    _check_extras(row, {name for name, value in given.items() if not _is_absent(value)})
    _check_prompt(row, prompt)
    _check_count(row, images)
    pictures = tuple(read_image(image) for image in images)
    _check_views(row, cameras, len(pictures))
    if not _is_absent(hole):
        pictures = tuple(_fill_hole(picture, hole) for picture in pictures)
    legend = check_legend(colors) if colors else {}
    words = prompts.Words(
        token=row.token,
        prompt=prompt,
        colors=legend,
        captions=_check_captions(captions, len(pictures)),
        item=_check_item(item),
    )
    mask = row.frames(len(pictures), 0 if cameras is None else len(cameras))
    return Composition(
        prompt=row.write(words),
        mask=mask,
        kinds=frame_kinds(len(mask), row.multiview),
        images=pictures,
        cameras=cameras,
        multiview=row.multiview,
        output=row.output,
        colors={thing: COLORS[color] for thing, color in legend.items()},
        steps=row.steps,
        guidance=row.guidance,
        size_rule=row.size_rule,
    )


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _check_extras(row: Task, given: set[str]) -> None:
    allowed = row.needs + row.takes
    for name in sorted(given - set(allowed)):
        takes = f"it takes {', '.join(allowed)} besides images and a prompt" if allowed else "it takes none of its kind"
        users = ", ".join(other.name for other in TASKS.values() if name in other.needs + other.takes)
        raise TaskError(f"{row.name} does not take {name}; {takes}, and {name} is for {users}")
    for name in row.needs:
        if name not in given:
            raise TaskError(f"{row.name} needs {name}, which was not given; give {EXTRAS[name]}")


def _check_prompt(row: Task, prompt: str) -> None:
    if not isinstance(prompt, str):
        raise TaskError(f"the prompt is a {type(prompt).__name__}; give a string")
    if row.prompt_required and not prompt.strip():
        raise TaskError(f"{row.name} needs a prompt and the one given is empty; say what the picture is to show")
    if row.token in prompt:
        raise TaskError(f"the prompt holds {row.token}, which {row.name} adds itself; leave it out, or use generate()")


def _check_count(row: Task, images: Sequence[ImageSource]) -> None:
    check_list(images)
    fewest, most = row.images
    if len(images) < fewest or (most is not None and len(images) > most):
        allowed = f"at least {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
        raise TaskError(f"{len(images)} images were given and {row.name} takes {allowed}; change images= (--image)")


def _check_views(row: Task, cameras: Cameras | None, images: int) -> None:
    check_cameras(cameras)
    if cameras is None:
        return
    if row.output == "cameras" and len(cameras) != images:
        raise TaskError(
            f"{len(cameras)} cameras were given for {images} images; {row.name} needs none, or one per image"
        )
    if row.output != "cameras" and len(cameras) <= images:
        raise TaskError(
            f"{len(cameras)} cameras were given for {images} images; give those of the images first, "
            "then one for each view to make"
        )


def _check_captions(captions: Sequence[str] | None, images: int) -> tuple[str, ...]:
    if captions is None or _is_absent(captions):
        return ("",) * images
    if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
        raise TaskError(f"captions is {captions!r}; give a list of strings, one per given picture")
    if len(captions) != images:
        raise TaskError(f"{len(captions)} captions were given for {images} images; give one per given picture")
    return tuple(captions)


def _check_item(item: str | None) -> str:
    if item is None:
        return ""
    if not isinstance(item, str) or not item.strip() or set(item) & set("<>[]"):
        raise TaskError(f"item is {item!r}; give words without < > [ ]")
    return item


def _fill_hole(picture: Image.Image, hole: ImageSource | None) -> Image.Image:
    assert hole is not None
    white = np.asarray(read_image(hole).convert("L")) >= HOLE_WHITE
    if white.shape != (picture.height, picture.width):
        raise TaskError(
            f"the hole is {white.shape[1]} x {white.shape[0]} pixels and the picture {picture.width} x "
            f"{picture.height}; give a hole of the picture's size"
        )
    if not white.any():
        raise TaskError("the hole has no white pixel, so nothing would be filled; white is filled and black kept")
    pixels = np.array(picture)
    pixels[white] = HOLE_GREY
    return Image.fromarray(pixels)
