"""Arguments of tasks as callers give them, checked: what every family asks of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framert.runtime.errors import TaskError
from framert.runtime.images import ImageSource, read_image
from framert.runtime.request import Request
from framert.runtime.task import EXTRAS, Task

HOLE_GREY = 128  # what models are trained to see where they are to fill
HOLE_WHITE = 128  # from this value on a pixel of the mask picture counts as white


def check_arguments(row: Task, tasks: Mapping[str, Task], request: Request) -> None:
    """Raises: TaskError unless the request gives what ``row``, one of ``tasks``, takes: extras, prompt and pictures."""
    given = {name for name in EXTRAS if not is_absent(getattr(request, name))}
    _check_extras(row, tasks, given)
    _check_prompt(row, request.prompt)
    _check_count(row, request.images)


def is_absent(value: Any) -> bool:
    """Say whether an argument was left out, or given as nothing."""
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _check_extras(row: Task, tasks: Mapping[str, Task], given: set[str]) -> None:
    for name in sorted(given - set(row.extras)):
        takes = f"it takes {', '.join(row.extras)} besides images and a prompt" if row.extras else (
            "it takes none of its kind"
        )  # fmt: skip
        users = ", ".join(other.name for other in tasks.values() if name in other.extras) or "no task of this bundle"
        raise TaskError(f"{row.name} does not take {name}; {takes}, and {name} is for {users}")
    for name in row.needs:
        if name not in given:
            raise TaskError(f"{row.name} needs {name}, which was not given; give {EXTRAS[name]}")


def _check_prompt(row: Task, prompt: str) -> None:
    check_text(prompt)
    if row.prompt_required and not prompt.strip():
        raise TaskError(f"{row.name} needs a prompt and the one given is empty; say what the picture is to show")
    if row.token and row.token in prompt:
        raise TaskError(f"the prompt holds {row.token}, which {row.name} adds itself; leave it out, or use generate()")


def check_text(prompt: object) -> None:
    """Raises: TaskError unless the prompt is a string."""
    if not isinstance(prompt, str):
        raise TaskError(f"the prompt is a {type(prompt).__name__}; give a string")


def check_list(images: object) -> None:
    """Raises: TaskError if ``images`` is a single picture or a file name rather than a list."""
    if not isinstance(images, list | tuple):
        raise TaskError(f"images is a {type(images).__name__}; give a list, such as images=['picture.png']")


def _check_count(row: Task, images: Sequence[ImageSource]) -> None:
    check_list(images)
    fewest, most = row.images
    if len(images) < fewest or (most is not None and len(images) > most):
        allowed = f"at least {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
        raise TaskError(f"{len(images)} images were given and {row.name} takes {allowed}; change images= (--image)")


def check_captions(captions: Sequence[str] | None, images: int) -> tuple[str, ...]:
    """Return one caption per given picture, "" where none was given. Raises: TaskError."""
    if captions is None or is_absent(captions):
        return ("",) * images
    if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
        raise TaskError(f"captions is {captions!r}; give a list of strings, one per given picture")
    if len(captions) != images:
        raise TaskError(f"{len(captions)} captions were given for {images} images; give one per given picture")
    return tuple(captions)


def read_hole(picture: Image.Image, hole: ImageSource) -> NDArray[np.bool_]:
    """Return where a picture is to be filled, (height, width). Raises: TaskError if the hole does not fit; ImageError.

    Args:
        hole: a mask picture of the picture's size, white where to fill.
    """
    white: NDArray[np.bool_] = np.asarray(read_image(hole).convert("L")) >= HOLE_WHITE
    if white.shape != (picture.height, picture.width):
        raise TaskError(
            f"the hole is {white.shape[1]} x {white.shape[0]} pixels and the picture {picture.width} x "
            f"{picture.height}; give a hole of the picture's size"
        )
    if not white.any():
        raise TaskError("the hole has no white pixel, so nothing would be filled; white is filled and black kept")
    return white


def filled(picture: Image.Image, white: NDArray[np.bool_]) -> Image.Image:
    """Return a picture that is grey where ``white``, (height, width)."""
    pixels = np.array(picture)
    pixels[white] = HOLE_GREY
    return Image.fromarray(pixels)
