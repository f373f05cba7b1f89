"""A pack as runs of neighbouring requests of equal length: OpenVINO computes each run in a call of its own.

Its Loop copies what it is given and what it returns, about a fifth of an int8 step. All requests of a call are equally
long instead, so that attention is one batch. Requests share nothing but the weights, so nothing is computed twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framert.runtime.arrays import Array, Ints
from framert.runtime.tables import Tables


@dataclass(frozen=True, slots=True)
class Run:
    """Requests of equal length. tables: the denoiser's inputs by name; slots, frames: their places in the pack."""

    tables: Mapping[str, Array]
    slots: slice
    frames: slice


def split(tables: Tables) -> list[Run]:
    """Return the runs of a pack, which read its arrays in place where no index has to change.

    Sequences that nobody reads, which only pad, are left out.
    """
    lengths = np.stack((tables.q_range[:, 1], tables.kv_range[:, 1], _longest_text(tables)), axis=1)
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


def _longest_text(tables: Tables) -> Ints:
    """Return (sequences,): the longest text that is part of a sequence of the same request; 0 where texts lie apart.

    Attention is padded to it, and no request's padding may depend on its neighbours, nor then its last bits.
    """
    if tables.text_source is None:
        return np.zeros(len(tables.text_range), np.int32)
    request = tables.source[tables.q_range[:, 0]]  # the branches of a request begin with the same slot
    begins = np.append(0, 1 + np.flatnonzero(request[1:] != request[:-1]))
    longest = np.maximum.reduceat(tables.text_range[:, 1], begins)
    return np.repeat(longest, np.diff(np.append(begins, len(request))))


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
    return Run(arrays | _text(tables, sequences, frames) | _conditions(tables, tokens), slots, frames)


def _text(tables: Tables, sequences: slice, frames: slice) -> dict[str, Array]:
    """Return the tables of text tokens that are part of the call, if they are."""
    if tables.text_source is None or tables.text_frame is None:
        return {}
    ranges = tables.text_range[sequences]
    words = slice(int(ranges[0, 0]), int(ranges[-1].sum()))
    return {
        "text_range": ranges - np.array([words.start, 0], np.int32),
        "text_source": tables.text_source[words],
        "text_frame": tables.text_frame[words] - np.int32(frames.start),
    }


def _conditions(tables: Tables, tokens: slice) -> dict[str, Array]:
    """Return the rows that a run is shown, the blank one first, if the model is shown any."""
    if tables.conditions is None or tables.condition_source is None:
        return {}
    rows = tables.condition_source[tokens]
    own = rows[rows > 0]
    if not own.size:
        return {"conditions": tables.conditions[:1], "condition_source": rows}
    begin, end = int(own.min()), int(own.max()) + 1
    first = begin == 1  # then the blank row lies right before its own
    return {
        "conditions": tables.conditions[:end]
        if first
        else np.concatenate((tables.conditions[:1], tables.conditions[begin:end])),
        "condition_source": np.where(rows > 0, rows - np.int32(begin - 1), rows),
    }
