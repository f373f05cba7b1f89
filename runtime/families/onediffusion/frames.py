"""Raw frames of OneDiffusion: any mask over pictures and rays, under a prompt with its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framert.runtime.cameras import Cameras
from framert.runtime.composition import CAMERAS_HINT, Composition, Kind
from framert.runtime.errors import TaskError
from framert.runtime.families.arguments import check_list, check_text
from framert.runtime.images import ImageSource, read_image


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
    check_text(prompt)
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
