"""A pack as runs of neighbouring requests of equal length: OpenVINO computes each run in a call of its own.

Its Loop copies what it is given and what it returns, about a fifth of an int8 step. All sequences of a call are equally
long instead, so that attention is one batch. Requests share nothing but the weights, so nothing is computed twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.tables import Tables


@dataclass(frozen=True, slots=True)
class Run:
    """Requests of equal length. tables: the denoiser's inputs by name; slots, frames: their places in the pack."""

    tables: Mapping[str, Array]
    slots: slice
    frames: slice


def whole(tables: Tables) -> Run:
    """Return a pack as one run, of whatever lengths."""
    return Run(tables.arrays(), slice(0, tables.slots), slice(0, tables.frames))


def split(tables: Tables) -> list[Run]:
    """Return the runs of a pack, which read its arrays in place where no index has to change.

    Sequences that nobody reads, which only pad, are left out.
    """
    lengths = np.stack((tables.q_range[:, 1], tables.kv_range[:, 1]), axis=1)
    cuts = 1 + np.flatnonzero((lengths[1:] != lengths[:-1]).any(axis=1))
    ends = np.append(tables.q_range[cuts, 0], len(tables.source))
    first_token = tables.guidance_index[:, 0]  # of each slot: requests lie in the same order as slots and as tokens
    runs = []
    for sequences, begin, end in zip(
        np.split(np.arange(len(lengths)), cuts), [0, *ends[:-1].tolist()], ends.tolist(), strict=True
    ):
        slots = slice(*np.searchsorted(first_token, (begin, end)).tolist())
        if slots.start < slots.stop:
            runs.append(_run(tables, slice(sequences[0], sequences[-1] + 1), slice(begin, end), slots))
    return runs


def _run(tables: Tables, sequences: slice, tokens: slice, slots: slice) -> Run:
    frames = slice(int(tables.frame[tokens.start]), int(tables.frame[tokens.stop - 1]) + 1)
    here = np.array([tokens.start, 0], np.int32)
    arrays: dict[str, Array] = {
        "source": tables.source[tokens] - np.int32(slots.start),
        "position": tables.position[tokens],
        "frame": tables.frame[tokens] - np.int32(frames.start),
        "q_range": tables.q_range[sequences] - here,
        "kv_range": tables.kv_range[sequences] - here,
        "text_range": tables.text_range[sequences],
        "guidance_index": tables.guidance_index[slots] - np.int32(tokens.start),
        "guidance_weight": tables.guidance_weight[slots],
    }
    return Run(arrays, slots, frames)
