"""Latent frames to rows of tokens and back. A token is a patch of latent pixels, ordered (row, column, channel)."""

import numpy as np

from framert.runtime.arrays import Floats


def to_tokens(frames: Floats, patch: int) -> Floats:
    """Return (frames * h/p * w/p, p * p * channels) tokens of latents (frames, channels, h, w)."""
    count, channels, height, width = frames.shape
    split = frames.reshape(count, channels, height // patch, patch, width // patch, patch)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 3, 5, 1)).reshape(-1, patch * patch * channels)


def to_frames(tokens: Floats, patch: int, shape: tuple[int, int, int, int]) -> Floats:
    """Return latents of ``shape`` (frames, channels, h, w) from their tokens; inverse of ``to_tokens``."""
    count, channels, height, width = shape
    split = tokens.reshape(count, height // patch, width // patch, patch, patch, channels)
    return np.ascontiguousarray(split.transpose(0, 5, 1, 3, 2, 4)).reshape(shape)
