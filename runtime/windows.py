"""What padded attention takes besides the tables: inputs whose lengths say how far sequences and texts reach."""

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.tables import Tables

WINDOWS = {"window": "longest", "text_window": "text_longest"}  # input of the denoiser -> name of its one free axis


def windows(tables: Tables) -> dict[str, Array]:
    """Return 0, 1, .. up to the longest sequence (queries and keys), and up to the longest text."""
    longest = int(max(tables.q_range[:, 1].max(), tables.kv_range[:, 1].max()))
    text = int(max(1, tables.text_range[:, 1].max()))
    return {name: np.arange(length, dtype=np.int32) for name, length in zip(WINDOWS, (longest, text), strict=True)}
