"""Tiled decoding: tiles cover everything, overlap enough, and blend back to a decoder that has no context."""

import numpy as np
import pytest

from framert.runtime import tiling


def nearest(latents):
    """A decoder in which every latent pixel becomes a flat 8x8 block of its first three channels."""
    return np.repeat(np.repeat(latents[:3], 8, axis=1), 8, axis=2)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 143, 200, 240, 241, 512])
def test_tiles_cover_and_overlap(length):
    begins = tiling.starts(length)
    assert begins[0] == 0
    assert begins[-1] == max(0, length - tiling.TILE)
    steps = np.diff(begins)
    assert (steps > 0).all()
    assert (steps <= tiling.TILE - tiling.OVERLAP).all()


@pytest.mark.parametrize("size", [(8, 128), (130, 20), (129, 300)], ids=str)
def test_blending_is_exact_for_a_local_decoder(size):
    latents = np.random.default_rng(0).standard_normal((16, *size)).astype(np.float32)
    got = tiling.decode(nearest, latents, 8)
    np.testing.assert_allclose(got, nearest(latents), rtol=0, atol=1e-6)


def test_no_tile_is_larger_than_the_limit():
    sizes = []

    def decode(latents):
        sizes.append(latents.shape[1:])
        return nearest(latents)

    tiling.decode(decode, np.zeros((16, 300, 90), np.float32), 8)
    assert max(max(size) for size in sizes) <= tiling.TILE
    assert len(sizes) == 3
