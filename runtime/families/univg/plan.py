"""From a request to UniVG's one frame: what is shown beside the noise, and where it is to be painted anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from framert.runtime.annotations import Box
from framert.runtime.colors import COLORS, check_legend
from framert.runtime.composition import Composition
from framert.runtime.errors import TaskError
from framert.runtime.families.arguments import (
    HOLE_GREY,
    check_arguments,
    check_captions,
    check_list,
    check_text,
    filled,
    read_hole,
)
from framert.runtime.families.univg import prompts
from framert.runtime.families.univg.task_table import PLAIN, ChannelTask
from framert.runtime.images import MAX_PIXELS, read_image
from framert.runtime.request import Request

WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture(Composition):
    """One frame to generate. images: the picture shown beside it, at most one.

    painted: where that is to be painted anew: everywhere, nowhere, or a (height, width) map of it. references: pictures
    whose features stand for the prompt's placeholders. boxes: {thing: box} to be drawn, in pixels of the result.
    image_guidance: the task's own, None without a picture.
    """

    painted: bool | NDArray[np.bool_] = True
    references: tuple[Image.Image, ...] = ()
    boxes: Mapping[str, Box] = field(default_factory=dict)
    image_guidance: float | None = None

    @property
    def first(self) -> Image.Image | None:
        given = self.images or self.references
        return given[0] if given else None


def plan(row: ChannelTask, tasks: Mapping[str, ChannelTask], request: Request) -> Picture:
    """Compose a task, one of ``tasks``. Raises: TaskError for arguments it does not take or lacks; ImageError."""
    check_arguments(row, tasks, request)
    given = tuple(read_image(image) for image in request.images)
    shown, painted = _shown(row, given, request)
    boxes = check_boxes(request.boxes) if row.shown == "blocks" else {}
    legend = _legend(request, boxes) if boxes else {}
    references = given if row.shown == "references" else ()
    words = prompts.Words(
        token=row.token,
        prompt=request.prompt,
        colors=legend,
        captions=check_captions(request.captions, len(references)),
    )
    colors = {thing: COLORS[color] for thing, color in legend.items()}
    return Picture(
        prompt=row.write(words),
        mask=(1,),
        kinds=("picture",),
        images=shown,
        output=row.output,
        colors={request.prompt.strip(): WHITE} if row.named_by_prompt else colors,
        steps=row.steps,
        guidance=row.guidance,
        size_rule=row.size_rule,
        painted=painted,
        references=references,
        boxes=boxes,
        image_guidance=row.image_guidance,
    )


def compose(request: Request, plain: bool) -> Picture:
    """Compose a raw prompt, tokens included, with at most one picture shown beside the one to make.

    Args:
        plain: the bundle has no channels for a picture.
    Raises: TaskError for anything but one frame to generate; ImageError.
    """
    check_text(request.prompt)
    check_list(request.images)
    if request.multiview or request.cameras is not None:
        raise TaskError("cameras or multiview was given, and this bundle makes one picture without any; leave them out")
    mask = request.mask if isinstance(request.mask, list | tuple | np.ndarray) else ()
    if [value in (1, True) for value in mask] != [True]:
        raise TaskError(f"mask is {request.mask}; this bundle makes one picture at a time: give mask=[1]")
    most = 0 if plain else 1
    if len(request.images) > most:
        raise TaskError(f"{len(request.images)} images were given and this bundle is shown at most {most}; give fewer")
    return Picture(
        prompt=request.prompt,
        mask=(1,),
        kinds=("picture",),
        images=tuple(read_image(image) for image in request.images),
        steps=PLAIN.steps if plain else 50,
        guidance=PLAIN.guidance if plain else 4.0,
        size_rule="aspect" if request.images else "native",
        image_guidance=1.5 if request.images else None,
    )


def _shown(
    row: ChannelTask, given: Sequence[Image.Image], request: Request
) -> tuple[tuple[Image.Image, ...], bool | NDArray[np.bool_]]:
    """Return the picture shown beside the noise, if it does not depend on the size, and where it is painted anew."""
    if row.shown == "hole":
        assert request.hole is not None
        white = read_hole(given[0], request.hole)
        return (filled(given[0], white),), white
    if row.shown == "canvas":
        assert request.extend is not None
        picture, white = canvas(given[0], request.extend)
        return (picture,), white
    if row.shown == "source":
        return (given[0],), row.painted
    return (), row.painted


def canvas(picture: Image.Image, extend: Sequence[int]) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return a picture on a larger grey canvas, and where the canvas is new, (height, width).

    Args:
        extend: pixels to add on the left, at the top, on the right and at the bottom.
    Raises: TaskError if they are not four whole numbers from 0, all are 0, or the canvas is too large.
    """
    values = list(extend) if isinstance(extend, Sequence | np.ndarray) and not isinstance(extend, str) else []
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0 for value in values)
    if len(values) != 4 or not whole:
        raise TaskError(f"extend is {extend!r}; give four whole numbers of pixels: left, top, right, bottom")
    left, top, right, bottom = (int(value) for value in values)
    width, height = picture.width + left + right, picture.height + top + bottom
    if (width, height) == picture.size:
        raise TaskError("extend is 0 on every side, so nothing would be painted; give at least one above 0")
    if width * height > MAX_PIXELS:
        raise TaskError(f"extend makes a canvas of {width}x{height}; give less, up to {MAX_PIXELS} pixels in all")
    made = Image.new("RGB", (width, height), (HOLE_GREY,) * 3)
    made.paste(picture, (left, top))
    white = np.ones((height, width), bool)
    white[top : top + picture.height, left : left + picture.width] = False
    return made, white


def check_boxes(boxes: object) -> dict[str, Box]:
    """Return {thing: box} with whole pixels. Raises: TaskError unless every box is four numbers in order."""
    if not isinstance(boxes, Mapping) or not boxes:
        raise TaskError(f"boxes is {boxes!r}; give such as {{'red cube': (8, 24, 40, 56)}}")
    found: dict[str, Box] = {}
    for thing, box in boxes.items():
        values = list(box) if isinstance(box, list | tuple | np.ndarray) else []
        numbers = [value for value in values if isinstance(value, Real) and not isinstance(value, bool)]
        if len(numbers) != len(values) or len(values) != 4 or not np.isfinite(np.asarray(values, float)).all():
            raise TaskError(f"boxes gives {thing!r} {box!r}; give four numbers: left, top, right, bottom")
        left, top, right, bottom = (round(float(value)) for value in numbers)
        if not (0 <= left < right and 0 <= top < bottom):
            raise TaskError(
                f"boxes gives {thing!r} {tuple(values)}; give left, top, right, bottom from 0, left before right and "
                "top before bottom"
            )
        found[thing.strip() if isinstance(thing, str) else thing] = (left, top, right, bottom)
    if len(found) < len(boxes):
        raise TaskError("boxes names a thing twice; give each thing one box")
    return found


def _legend(request: Request, boxes: Mapping[str, Box]) -> dict[str, str]:
    """Return {thing: colour name}, the caller's or in the order of COLORS. Raises: TaskError."""
    if len(boxes) > len(COLORS):
        raise TaskError(f"boxes has {len(boxes)} things, and there are {len(COLORS)} colours; give fewer")
    legend = check_legend(request.colors or dict(zip(boxes, COLORS, strict=False)))
    if set(legend) != set(boxes):
        raise TaskError(f"colors names {', '.join(legend)} and boxes {', '.join(boxes)}; name the same things in both")
    return {thing: legend[thing] for thing in boxes}


def draw_boxes(composition: Picture, size: tuple[int, int]) -> Image.Image:
    """Return the boxes as filled rectangles in their colours on black, later ones on top.

    Raises: TaskError if a box reaches beyond the picture.
    """
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    for thing, (left, top, right, bottom) in composition.boxes.items():
        if right > size[0] or bottom > size[1]:
            raise TaskError(
                f"boxes gives {thing!r} {(left, top, right, bottom)}, beyond the result's {size[0]}x{size[1]} pixels; "
                "give a smaller box, or a larger size"
            )
        draw.rectangle((left, top, right - 1, bottom - 1), fill=composition.colors[thing])
    return image
