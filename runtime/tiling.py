"""Decode large latents in overlapping tiles, so that the decoder's memory does not grow with the picture."""

from collections.abc import Callable

import numpy as np

from framert.runtime.arrays import Floats

TILE = 128  # latent pixels per side: 1024 picture pixels, decoded whole
OVERLAP = 16


def decode(decode_tile: Callable[[Floats], Floats], latents: Floats, factor: int) -> Floats:
    """Return pixels (channels, h * factor, w * factor) of latents (channels, h, w).

    Up to TILE on both sides this is one call. Above, tiles overlap by OVERLAP and are cross-faded linearly.
    """
    _, height, width = latents.shape
    if height <= TILE and width <= TILE:
        return decode_tile(latents)
    total: Floats | None = None
    weight = np.zeros((height * factor, width * factor), np.float32)
    for top in starts(height):
        for left in starts(width):
            pixels = decode_tile(latents[:, top : top + TILE, left : left + TILE])
            fade = _fade(pixels.shape[1], factor)[:, None] * _fade(pixels.shape[2], factor)[None]
            if total is None:
                total = np.zeros((pixels.shape[0], *weight.shape), np.float32)
            rows = slice(top * factor, top * factor + pixels.shape[1])
            columns = slice(left * factor, left * factor + pixels.shape[2])
            total[:, rows, columns] += pixels * fade
            weight[rows, columns] += fade
    assert total is not None
    total /= weight
    return total


def starts(length: int) -> list[int]:
    """Return where tiles begin: evenly enough that neighbours overlap by at least OVERLAP."""
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(index * (length - TILE) / (count - 1)) for index in range(count)]


def _fade(length: int, factor: int) -> Floats:
    """Weights of a tile along one side: a ramp of OVERLAP at both ends, never 0."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(distance / (OVERLAP * factor), 1.0).astype(np.float32)
