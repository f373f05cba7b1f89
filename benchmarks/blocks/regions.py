"""Parts of masks that hang together."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def spread(seed: Mask, mask: Mask) -> Mask:
    """Return the part of ``mask`` (h, w) that ``seed`` reaches, from pixel to pixel by their sides."""
    part = seed & mask
    while True:
        grown = part.copy()
        grown[1:] |= part[:-1]
        grown[:-1] |= part[1:]
        grown[:, 1:] |= part[:, :-1]
        grown[:, :-1] |= part[:, 1:]
        grown &= mask
        if (grown == part).all():
            return part
        part = grown


def largest(mask: Mask) -> Mask:
    """Return the largest part of a mask (h, w) that hangs together; empty if the mask is."""
    best, rest = np.zeros_like(mask), mask.copy()
    while rest.sum() > best.sum():
        first = np.zeros_like(mask)
        first[np.unravel_index(rest.argmax(), rest.shape)] = True
        part = spread(first, rest)
        rest &= ~part
        if part.sum() > best.sum():
            best = part
    return best
