"""The denoiser's index tables: they say which token is what, and change only when the members of a pack change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from framert.runtime.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class BranchRows:
    """Where one guidance branch finds its text and modulation in the arenas, and its weight."""

    text_begin: int
    text_length: int
    modulation_begin: int
    weight: float


class Member(Protocol):
    """What the tables need to know of a sequence: its size in tokens and its branches."""

    @property
    def frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def branches(self) -> Sequence[BranchRows]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Inputs of the denoiser that hold for as long as a pack has the same members. See DESIGN.md for each."""

    source: Ints  # (tokens,)
    position: Ints  # (tokens, 3)
    frame: Ints  # (tokens,)
    q_range: Ints  # (sequences, 2)
    kv_range: Ints  # (sequences, 2)
    text_range: Ints  # (sequences, 2)
    guidance_index: Ints  # (slots, guidance_branches)
    guidance_weight: Floats  # (slots, guidance_branches)
    frames: int  # packed frames, padding's included
    kv_index: Ints | None = None  # (tokens,), where kv_range finds each token's key; None: at the token's own place

    @property
    def slots(self) -> int:
        return len(self.guidance_index)


def token_count(member: Member) -> int:
    """Return the model tokens of a member: every branch runs all its frames."""
    return len(member.branches) * slot_count(member)


def slot_count(member: Member) -> int:
    return member.frames * member.height * member.width


def build(members: Sequence[Member], *, guidance_branches: int, tokens: int | None = None) -> Tables:
    """Pack members one after another, a member's branches side by side.

    Args:
        members: at least one.
        guidance_branches: width of the guidance tables.
        tokens: pad the model tokens to this many; padding forms a sequence of its own that nobody reads.
    """
    sources, positions, frame_of, ranges, texts, indices, weights = [], [], [], [], [], [], []
    slot = token = frame = 0
    for member in members:
        slots = slot_count(member)
        local = np.arange(slots, dtype=np.int32)
        local_frame, rest = np.divmod(local, member.height * member.width)
        position = np.stack((local_frame, *np.divmod(rest, member.width)), axis=1)
        index = np.repeat((token + local)[:, None], guidance_branches, axis=1)
        weight = np.zeros((slots, guidance_branches), np.float32)
        for number, branch in enumerate(member.branches):
            sources.append(slot + local)
            positions.append(position)
            frame_of.append(frame + local_frame)
            ranges.append((token, slots))
            texts.append((branch.text_begin, branch.text_length))
            index[:, number] = token + local
            weight[:, number] = branch.weight
            token += slots
            frame += member.frames
        indices.append(index)
        weights.append(weight)
        slot += slots
    if tokens is not None and tokens > token:
        padding = tokens - token
        sources.append(np.zeros(padding, np.int32))
        positions.append(np.zeros((padding, 3), np.int32))
        frame_of.append(np.full(padding, frame, np.int32))
        ranges.append((token, padding))
        texts.append((0, 1))  # any text will do; ONNX Runtime's products of empty matrices can crash
        frame += 1
    spans = np.asarray(ranges, np.int32)
    return Tables(
        source=_join(sources),
        position=_join(positions),
        frame=_join(frame_of),
        q_range=spans,
        kv_range=spans,
        text_range=np.asarray(texts, np.int32),
        guidance_index=_join(indices),
        guidance_weight=np.concatenate(weights),
        frames=frame,
    )


def _join(parts: list[Ints]) -> Ints:
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.int32)
