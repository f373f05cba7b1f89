"""What a generated picture says: depth, masks and boxes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framert.runtime.colors import Rgb

Pixels = NDArray[np.floating[Any]]
Box = tuple[int, int, int, int]

MIN_BOX_AREA = 0.001  # of the picture; less is noise
MIN_BOX_COVERAGE = 0.3  # of the fullest row (column): with less, a row (column) is not part of the box


def depth(pixels: Pixels) -> NDArray[np.float32]:
    """Depth (h, w) in 0..1 from a generated depth picture (h, w, 3): the mean of its channels."""
    return np.asarray(np.clip(pixels, 0, 1).mean(axis=-1), dtype=np.float32)


def masks(pixels: Pixels, names: Mapping[str, Rgb]) -> dict[str, NDArray[np.bool_]]:
    """{thing: (h, w)} from a generated mask picture (h, w, 3) in 0..1.

    Every pixel goes to the closest of the named colours and the black background, so masks never overlap.
    """
    palette = np.array([(0, 0, 0), *names.values()], np.float32) / 255
    distance = np.stack([((pixels - color) ** 2).sum(axis=-1) for color in palette])
    nearest = distance.argmin(axis=0)
    return {thing: nearest == index for index, thing in enumerate(names, start=1)}


def boxes(pixels: Pixels, names: Mapping[str, Rgb]) -> dict[str, Box | None]:
    """{thing: (left, top, right, bottom)} in pixels from filled rectangles; right and bottom are one past the last.

    None where a thing's colour covers too little to be a box.
    """
    return {thing: _rectangle(mask) for thing, mask in masks(pixels, names).items()}


def _rectangle(mask: NDArray[np.bool_]) -> Box | None:
    """The extent of a filled rectangle; stray pixels and ragged edges do not move it."""
    if mask.sum() < max(2, MIN_BOX_AREA * mask.size):
        return None
    top, bottom = _extent(mask.sum(axis=1))
    left, right = _extent(mask[top:bottom].sum(axis=0))
    # Once more within the columns found: pixels of the colour beside the box no longer count for its rows.
    top, bottom = _extent(mask[:, left:right].sum(axis=1))
    return left, top, right, bottom


def _extent(coverage: NDArray[np.int_]) -> tuple[int, int]:
    full = np.flatnonzero(coverage >= MIN_BOX_COVERAGE * coverage.max())
    return int(full[0]), int(full[-1]) + 1
