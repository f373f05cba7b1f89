"""What padded attention takes besides the tables: inputs whose lengths say how far sequences and texts reach."""

from collections.abc import Container

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.tables import Tables

WINDOWS = {"window": "longest", "text_window": "text_longest"}  # input of the denoiser -> name of its one free axis


def has_windows(inputs: Container[str]) -> bool:
    """Return whether a denoiser of these inputs attends in padded windows. Where text is carried there is only one."""
    return "window" in inputs


def windows(tables: Tables) -> dict[str, Array]:
    """Return 0, 1, .. up to the longest sequence (queries and keys), and up to the longest text.

    A text that is carried is part of its sequence.
    """
    longest, text = reaches(tables)
    lengths = {"window": longest} if tables.text_source is not None else {"window": longest, "text_window": text}
    return {name: np.arange(length, dtype=np.int32) for name, length in lengths.items()}


def reaches(tables: Tables) -> tuple[int, int]:
    """Return the length of the longest sequence, a text that is carried counted, and that of the longest text."""
    carried = tables.text_range[:, 1] if tables.text_source is not None else 0
    longest = max(int((ranges[:, 1] + carried).max()) for ranges in (tables.q_range, tables.kv_range))
    return max(1, longest), max(1, int(tables.text_range[:, 1].max()))
