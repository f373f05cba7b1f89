"""The denoiser's index tables: they say which token is what, and change only when the members of a pack change."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from framert.runtime.arrays import Array, Floats, Ints


@dataclass(frozen=True, slots=True)
class BranchRows:
    """Where one guidance branch finds its text and modulation in the arenas, and its weight.

    cache_begin: its own rows for keys and values, one per slot, where it keeps those of its condition frames; or None.
    picture: whether its tokens read the member's conditions, or the blank one.
    """

    text_begin: int
    text_length: int
    modulation_begin: int
    weight: float
    cache_begin: int | None = None
    picture: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """How a family's tables are laid out, beyond what they all have.

    blank: (condition width,), what a token is shown where there is no picture; None: conditions are no part of the
    denoiser's input. carries_text: text tokens are part of the call, beside the picture's; else they are keys and
    values in the arenas. centred_in: positions are those of a grid in the middle of one of so many tokens a side;
    0: from the corner on.
    """

    blank: Floats | None = None
    carries_text: bool = False
    centred_in: int = 0


class Member(Protocol):
    """What the tables need to know of a sequence: its size in tokens and its branches.

    conditions: (slots, condition width) where a branch reads them.
    """

    @property
    def frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def branches(self) -> Sequence[BranchRows]: ...
    @property
    def conditions(self) -> Floats | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Inputs of the denoiser that hold for as long as a pack has the same members. See DESIGN.md for each."""

    source: Ints  # (tokens,)
    position: Ints  # (tokens, 3)
    frame: Ints  # (tokens,)
    q_range: Ints  # (sequences, 2)
    kv_range: Ints  # (sequences, 2)
    text_range: Ints  # (sequences, 2), into the text arenas; where text is carried, into this call's text tokens
    guidance_index: Ints  # (slots, guidance_branches)
    guidance_weight: Floats  # (slots, guidance_branches)
    frames: int  # packed frames, padding's included
    kv_index: Ints | None = None  # (tokens,), where kv_range finds each token's key; None: at the token's own place
    conditions: Floats | None = None  # (condition rows, condition width), the blank one first
    condition_source: Ints | None = None  # (tokens,), the row of conditions that each model token reads
    text_source: Ints | None = None  # (text tokens,), the row of the text arena that feeds each text token of this call
    text_frame: Ints | None = None  # (text tokens,), the packed frame whose modulation row the text token takes

    @property
    def slots(self) -> int:
        return len(self.guidance_index)

    def arrays(self) -> dict[str, Array]:
        """Return the tables there are by their names, which are those of the denoiser's inputs."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "frames"}
        return {name: value for name, value in values.items() if value is not None}


def token_count(member: Member, running: Sequence[int] | None = None) -> int:
    """Return the model tokens of a member: every branch runs all its frames, or those given."""
    frames = member.frames if running is None else len(running)
    return len(member.branches) * frames * member.height * member.width


def slot_count(member: Member) -> int:
    return member.frames * member.height * member.width


DEFAULT_LAYOUT = Layout()


def build(
    members: Sequence[Member],
    *,
    guidance_branches: int,
    tokens: int | None = None,
    running: Sequence[Sequence[int] | None] | None = None,
    cache_rows: int | None = None,
    layout: Layout = DEFAULT_LAYOUT,
) -> Tables:
    """Pack members one after another, a member's branches side by side.

    Args:
        members: at least one.
        guidance_branches: width of the guidance tables.
        tokens: pad the model tokens to this many; padding forms a sequence of its own that nobody reads.
        running: for each member the frames that run in this call, None for all; the keys and values of the others are
            those in its branches' cache rows, and their slots get no velocity.
        cache_rows: rows of the key and value arenas. Given, all keys pass through them: members without rows of their
            own use those that follow, each token the row of its place. None: keys are read where they fall.
        layout: of the family.
    """
    sources, positions, frame_of, ranges, keys, texts, indices, weights = [], [], [], [], [], [], [], []
    key_ranges: list[tuple[int, int]] = []
    shown, conditions = [], [] if layout.blank is None else [layout.blank[None]]
    text_sources, text_frames = [], []
    slot = token = frame = text = 0
    row = 1  # of conditions, behind the blank one
    for member, chosen in zip(members, running or [None] * len(members), strict=True):
        slots = slot_count(member)
        local = np.arange(slots, dtype=np.int32)
        if chosen is not None:
            local = local[np.isin(local // (member.height * member.width), chosen)]
        local_frame, rest = np.divmod(local, member.height * member.width)
        position = np.stack((local_frame, *np.divmod(rest, member.width)), axis=1)
        if layout.centred_in:
            position += np.array([0, *((layout.centred_in - side) // 2 for side in (member.height, member.width))])
        count = len(local)
        own = np.full(slots, token, np.int32)  # a slot without a token points to one of its member's, with weight 0
        own[local] = token + np.arange(count, dtype=np.int32)
        index = np.repeat(own[:, None], guidance_branches, axis=1)
        weight = np.zeros((slots, guidance_branches), np.float32)
        for number, branch in enumerate(member.branches):
            sources.append(slot + local)
            positions.append(position)
            frame_of.append(frame + local_frame)
            ranges.append((token, count))
            if cache_rows is None:
                key_ranges.append((token, count))
            elif branch.cache_begin is None:
                key_ranges.append((cache_rows + token, count))
                keys.append(cache_rows + token + np.arange(count, dtype=np.int32))
            else:
                key_ranges.append((branch.cache_begin, slots))
                keys.append(branch.cache_begin + local)
            if layout.carries_text:
                texts.append((text, branch.text_length))
                text_sources.append(branch.text_begin + np.arange(branch.text_length, dtype=np.int32))
                text_frames.append(np.full(branch.text_length, frame, np.int32))
                text += branch.text_length
            else:
                texts.append((branch.text_begin, branch.text_length))
            shown.append(row + local if branch.picture else np.zeros(count, np.int32))
            index[local, number] = token + np.arange(count, dtype=np.int32)
            weight[local, number] = branch.weight
            token += count
            frame += member.frames
        if any(branch.picture for branch in member.branches):
            assert conditions
            assert member.conditions is not None
            conditions.append(member.conditions)
            row += slots
        indices.append(index)
        weights.append(weight)
        slot += slots
    if tokens is not None and tokens > token:
        padding = tokens - token
        begin = token + (cache_rows or 0)
        sources.append(np.zeros(padding, np.int32))
        positions.append(np.zeros((padding, 3), np.int32))
        frame_of.append(np.full(padding, frame, np.int32))
        ranges.append((token, padding))
        key_ranges.append((begin, padding))
        keys.append(begin + np.arange(padding, dtype=np.int32))
        shown.append(np.zeros(padding, np.int32))
        # any text will do where it is read apart; ONNX Runtime's products of empty matrices can crash
        texts.append((text, 0) if layout.carries_text else (0, 1))
        frame += 1
    return Tables(
        source=_join(sources),
        position=_join(positions),
        frame=_join(frame_of),
        q_range=np.asarray(ranges, np.int32),
        kv_range=np.asarray(key_ranges, np.int32),
        text_range=np.asarray(texts, np.int32),
        guidance_index=_join(indices),
        guidance_weight=np.concatenate(weights),
        frames=frame,
        kv_index=None if cache_rows is None else _join(keys),
        conditions=np.concatenate(conditions) if conditions else None,
        condition_source=_join(shown) if conditions else None,
        text_source=_join(text_sources) if layout.carries_text else None,
        text_frame=_join(text_frames) if layout.carries_text else None,
    )


def _join(parts: list[Ints]) -> Ints:
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.int32)
