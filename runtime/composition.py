"""The frames of one request: which are given, which are made, and what each of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framert.runtime.cameras import Cameras
from framert.runtime.colors import Rgb
from framert.runtime.errors import TaskError
from framert.runtime.images import ImageSource, read_image

Kind = Literal["picture", "rays"]
SizeRule = Literal["native", "aspect", "square"]
Output = Literal["depth", "masks", "boxes", "cameras"]

CAMERAS_HINT = "cameras=framert.Cameras.orbit(...), one per view (--azimuth, --elevation, --distance)"


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
    check_cameras(cameras)
    flags = _check_mask(mask)
    multiview = multiview or cameras is not None
    if multiview:
        _check_pairs(flags, cameras)
    kinds = frame_kinds(len(flags), multiview)
    wanted = sum(kind == "picture" and not flag for kind, flag in zip(kinds, flags, strict=True))
    check_list(images)
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


def frame_kinds(frames: int, multiview: bool) -> tuple[Kind, ...]:
    """Pictures throughout, or picture and rays in turn."""
    return tuple("rays" if multiview and frame % 2 else "picture" for frame in range(frames))


def check_list(images: Sequence[ImageSource]) -> None:
    """Raises: TaskError if ``images`` is a single picture or a file name rather than a list."""
    if not isinstance(images, list | tuple):
        raise TaskError(f"images is a {type(images).__name__}; give a list, such as images=['picture.png']")


def check_cameras(cameras: object) -> None:
    """Raises: TaskError if ``cameras`` is neither None nor Cameras."""
    if cameras is not None and not isinstance(cameras, Cameras):
        raise TaskError(f"cameras is a {type(cameras).__name__}; give {CAMERAS_HINT}")


def _check_mask(mask: Sequence[int] | NDArray[Any] | None) -> tuple[int, ...]:
    values = list(mask) if isinstance(mask, list | tuple | np.ndarray) else []
    if not values or not all(isinstance(value, int | np.integer | np.bool_) and value in (0, 1) for value in values):
        given = " ".join(str(mask).split())  # an array prints on several lines
        raise TaskError(f"mask is {given}; give a list with a 0 (given) or 1 (generate) for every frame")
    if not any(values):
        raise TaskError(f"mask {[int(value) for value in values]} leaves nothing to generate; set a frame to 1")
    return tuple(int(value) for value in values)


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
        raise TaskError(f"mask {list(mask)} has given ray frames; give {CAMERAS_HINT}")
