"""OneDiffusion's tasks: one row each, and how a row or a raw call becomes frames, mask and prompt."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from framert.runtime import prompts
from framert.runtime.cameras import Cameras
from framert.runtime.colors import COLORS, Rgb, check_legend
from framert.runtime.errors import TaskError
from framert.runtime.images import ImageSource, read_image

Kind = Literal["picture", "rays"]
SizeRule = Literal["native", "aspect", "square"]
Output = Literal["depth", "masks", "boxes", "cameras"]

HOLE_GREY = 128  # what the model was trained to see where it is to fill
HOLE_WHITE = 128  # from this value on a pixel of the mask picture counts as white
# What a task may need besides pictures and a prompt, and how to give it.
EXTRAS = {
    "colors": "colors={'red cube': 'cyan'} (--color 'red cube=cyan')",
    "hole": "hole=a mask picture, white where to fill (--hole FILE)",
    "captions": "captions=[...], one per given picture (--caption)",
    "item": "item='red cube', what the given picture shows (--item)",
    "cameras": "cameras=framert.Cameras.orbit(...), one per view (--azimuth, --elevation, --distance)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The frames of one request, whichever way they were asked for.

    prompt: as the tokenizer reads it. mask: one entry per frame, 1 = generate. kinds: what each frame is.
    images: pictures of the mask-0 picture frames, in order. cameras: one per ray frame, or None when all rays are
    generated. output: what the result holds besides pictures. colors: {thing: colour} of its masks or boxes.
    size_rule: the default size is the bundle's native square, or the aspect table's entry for the first picture;
    "square" also forbids any other shape.
    """

    prompt: str
    mask: tuple[int, ...]
    kinds: tuple[Kind, ...]
    images: tuple[Image.Image, ...] = ()
    cameras: Cameras | None = None
    multiview: bool = False
    output: Output | None = None
    colors: Mapping[str, Rgb] = field(default_factory=dict)
    steps: int = 50
    guidance: float = 4.0
    size_rule: SizeRule = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row of the table.

    frames: (number of given images, number of cameras) -> mask. images: fewest and most that can be given, None
    without a limit. write: makes the prompt. needs, takes: names in EXTRAS that must and that may be given.
    """

    name: str
    summary: str
    token: str
    frames: Callable[[int, int], tuple[int, ...]]
    images: tuple[int, int | None] = (1, 1)
    write: Callable[[prompts.Words], str] = prompts.text
    prompt_required: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    output: Output | None = None
    multiview: bool = False
    steps: int = 50
    guidance: float = 4.0
    size_rule: SizeRule = "aspect"


def _alone(images: int, cameras: int) -> tuple[int, ...]:
    return (1,)


def _from_given(images: int, cameras: int) -> tuple[int, ...]:
    return (1,) + (0,) * images


def _beside_given(images: int, cameras: int) -> tuple[int, ...]:
    return (0,) * images + (1,)


def _new_views(images: int, cameras: int) -> tuple[int, ...]:
    """Picture, rays, picture, rays: the first pictures are given, and every ray."""
    return tuple(value for view in range(cameras) for value in (int(view >= images), 0))


def _new_rays(images: int, cameras: int) -> tuple[int, ...]:
    return (0, 1) * images


def _paired(kind: str, token: str, summary: str, output: Output | None = None) -> tuple[Task, Task]:
    """The two directions of a picture and its map."""
    return (
        Task(
            name=f"image_to_{kind}",
            summary=f"{summary} of a picture",
            token=token,
            frames=_beside_given,
            output=output,
        ),
        Task(name=f"{kind}_to_image", summary=f"a picture from its {summary}", token=token, frames=_from_given),
    )


def _named(
    kind: str, token: str, summary: str, write: Callable[[prompts.Words], str], output: Output
) -> tuple[Task, Task]:
    """The two directions of a picture and a map in which colours stand for named things."""
    return (
        Task(
            name=f"image_to_{kind}",
            summary=f"{summary} of named things in a picture",
            token=token,
            frames=_beside_given,
            write=write,
            needs=("colors",),
            output=output,
        ),
        Task(
            name=f"{kind}_to_image",
            summary=f"a picture from {summary} of named things",
            token=token,
            frames=_from_given,
            write=write,
            needs=("colors",),
        ),
    )


# Steps and guidance are the published ones; where they say 3 to 3.5 (whatever keeps a given picture), 3.5.
_ROWS = (
    Task(
        name="text_to_image",
        summary="a picture from words",
        token="[[text2image]]",
        frames=_alone,
        images=(0, 0),
        prompt_required=True,
        size_rule="native",
    ),
    *_paired("depth", "[[depth2image]]", "depth", "depth"),
    *_paired("canny", "[[canny2image]]", "Canny edges"),
    *_paired("hed", "[[hed2img]]", "soft (HED) edges"),
    *_paired("pose", "[[pose2image]]", "body pose"),
    *_named("semantic", "[[semanticmap2image]]", "coloured masks", prompts.masks, "masks"),
    *_named("boxes", "[[boundingbox2image]]", "coloured boxes", prompts.boxes, "boxes"),
    Task(
        name="deblur",
        summary="a sharp picture from a blurred one",
        token="[[deblurring]]",
        frames=_from_given,
        guidance=3.5,
    ),
    Task(
        name="inpaint",
        summary="a picture with its hole filled",
        token="[[image_inpainting]]",
        frames=_from_given,
        needs=("hole",),
        guidance=3.5,
    ),
    Task(
        name="edit",
        summary="a picture changed as the prompt says",
        token="[[image_editing]]",
        frames=_from_given,
        prompt_required=True,
        guidance=3.5,
    ),
    Task(
        name="identity",
        summary="a new picture of the person in one to three pictures",
        token="[[faceid]]",
        frames=_from_given,
        images=(1, 3),
        write=prompts.references,
        prompt_required=True,
        takes=("captions",),
        steps=75,
    ),
    Task(
        name="subject",
        summary="a new picture of the thing in a picture",
        token="[[subject_driven]]",
        frames=_from_given,
        write=prompts.references,
        prompt_required=True,
        needs=("item",),
        takes=("captions",),
    ),
    Task(
        name="image_to_multiview",
        summary="further views of what one or more pictures show, at given cameras",
        token="[[multiview]]",
        frames=_new_views,
        images=(1, None),
        needs=("cameras",),
        multiview=True,
        steps=60,
        size_rule="square",
    ),
    Task(
        name="text_to_multiview",
        summary="views at given cameras of what words say",
        token="[[multiview]]",
        frames=_new_views,
        images=(0, 0),
        prompt_required=True,
        needs=("cameras",),
        multiview=True,
        steps=60,
        size_rule="square",
    ),
    Task(
        name="camera_pose",
        summary="the cameras that two or more pictures were taken with",
        token="[[multiview]]",
        frames=_new_rays,
        images=(2, None),
        takes=("cameras",),
        output="cameras",
        multiview=True,
        steps=60,
        size_rule="square",
    ),
)
TASKS: Mapping[str, Task] = {row.name: row for row in _ROWS}


def find_task(name: str) -> Task:
    """The row called ``name``. Raises: TaskError that lists the tasks and the closest one."""
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(str(name), TASKS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "use one of them, or generate() for other frames."
    raise TaskError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}: {hint}")


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
    _check_cameras(row, cameras, len(pictures))
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
        kinds=_kinds(len(mask), row.multiview),
        images=pictures,
        cameras=cameras,
        multiview=row.multiview,
        output=row.output,
        colors={thing: COLORS[color] for thing, color in legend.items()},
        steps=row.steps,
        guidance=row.guidance,
        size_rule=row.size_rule,
    )


def compose(
    *,
    prompt: str,
    mask: Sequence[int] | None,
    images: Sequence[ImageSource] = (),
    cameras: Cameras | None = None,
    multiview: bool = False,
) -> Composition:
    """Compose raw frames.

    Args:
        prompt: whole, with its tokens. mask: one entry per frame, 1 = generate, 0 = given.
        images: of the mask-0 picture frames, in order.
        cameras: with them, or with ``multiview``, frames alternate picture, rays. One camera per pair; those of
            generated ray frames are ignored.
    Raises: TaskError if mask, images and cameras do not fit each other; ImageError.
    """
    if not isinstance(prompt, str):
        raise TaskError(f"the prompt is a {type(prompt).__name__}; give a string")
    if cameras is not None and not isinstance(cameras, Cameras):
        raise TaskError(f"cameras is a {type(cameras).__name__}; give {EXTRAS['cameras']}")
    if not isinstance(mask, Sequence | np.ndarray) or not len(mask) or any(value not in (0, 1) for value in mask):
        raise TaskError(f"mask is {mask!r}; give a list with a 0 (given) or 1 (generate) for every frame")
    flags = tuple(int(value) for value in mask)
    if not any(flags):
        raise TaskError(f"mask {list(flags)} leaves nothing to generate; set at least one frame to 1")
    multiview = multiview or cameras is not None
    if multiview:
        _check_pairs(flags, cameras)
    kinds = _kinds(len(flags), multiview)
    wanted = sum(kind == "picture" and not flag for kind, flag in zip(kinds, flags, strict=True))
    _check_list(images)
    if len(images) != wanted:
        raise TaskError(
            f"{len(images)} images were given and mask {list(flags)} has {wanted} given pictures; match them"
        )
    makes_rays = any(kind == "rays" and flag for kind, flag in zip(kinds, flags, strict=True))
    return Composition(
        prompt=prompt,
        mask=flags,
        kinds=kinds,
        images=tuple(read_image(image) for image in images),
        cameras=cameras,
        multiview=multiview,
        output="cameras" if makes_rays else None,
        steps=60 if multiview else 50,
        size_rule="square" if multiview else "aspect" if images else "native",
    )


def _kinds(frames: int, multiview: bool) -> tuple[Kind, ...]:
    return tuple("rays" if multiview and frame % 2 else "picture" for frame in range(frames))


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _check_extras(row: Task, given: set[str]) -> None:
    allowed = row.needs + row.takes
    for name in sorted(given - set(allowed)):
        takes = f"it takes {', '.join(allowed)} besides images and a prompt" if allowed else "it takes none of its kind"
        users = ", ".join(other.name for other in _ROWS if name in other.needs + other.takes)
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


def _check_list(images: Sequence[ImageSource]) -> None:
    if not isinstance(images, list | tuple):
        raise TaskError(f"images is a {type(images).__name__}; give a list, such as images=['picture.png']")


def _check_count(row: Task, images: Sequence[ImageSource]) -> None:
    _check_list(images)
    fewest, most = row.images
    if len(images) < fewest or (most is not None and len(images) > most):
        allowed = f"at least {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
        raise TaskError(f"{len(images)} images were given and {row.name} takes {allowed}; change images= (--image)")


def _check_cameras(row: Task, cameras: Cameras | None, images: int) -> None:
    if cameras is None:
        return
    if not isinstance(cameras, Cameras):
        raise TaskError(f"cameras is a {type(cameras).__name__}; give {EXTRAS['cameras']}")
    if row.output == "cameras" and len(cameras) != images:
        raise TaskError(
            f"{len(cameras)} cameras were given for {images} images; {row.name} needs none, or one per image"
        )
    if row.output != "cameras" and len(cameras) <= images:
        raise TaskError(
            f"{len(cameras)} cameras were given for {images} images; give those of the images first, "
            "then one for each view to make"
        )


def _check_pairs(mask: tuple[int, ...], cameras: Cameras | None) -> None:
    if len(mask) % 2:
        raise TaskError(
            f"mask {list(mask)} has {len(mask)} frames; multiview frames alternate picture, rays: give pairs"
        )
    if cameras is not None and len(cameras) != len(mask) // 2:
        raise TaskError(
            f"{len(cameras)} cameras were given for the {len(mask) // 2} views of the mask; give one per view"
        )
    if cameras is None and not all(mask[1::2]):
        raise TaskError(f"mask {list(mask)} has given ray frames; give {EXTRAS['cameras']}")


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
