"""Properties of the packed tables, and the arena's bookkeeping."""

from dataclasses import fields, replace

import numpy as np
import pytest

from framert.runtime import tables
from framert.runtime.arena import Arena


class Member:
    def __init__(self, frames, height, width, branches):
        self.frames, self.height, self.width = frames, height, width
        self.branches = tuple(tables.BranchRows(7 * n, 3 + n, 11 * n, 1.0 + n) for n in range(branches))


PACKS = [
    [Member(1, 1, 1, 1)],
    [Member(2, 3, 5, 2)],
    [Member(1, 4, 4, 2), Member(6, 2, 2, 1), Member(2, 1, 3, 3)],
]


@pytest.mark.parametrize("padding", [0, 1, 17])
@pytest.mark.parametrize("members", PACKS, ids=lambda pack: "+".join(str(m.frames) for m in pack))
def test_tables_describe_every_token_once(members, padding):
    tokens = sum(tables.token_count(m) for m in members)
    built = tables.build(members, guidance_branches=4, tokens=tokens + padding)
    slots = sum(tables.slot_count(m) for m in members)
    assert built.slots == slots
    assert len(built.source) == len(built.position) == len(built.frame) == tokens + padding
    # ranges are contiguous, in order, and cover all tokens: the portable FrameAttention body needs it
    begins, lengths = built.q_range[:, 0], built.q_range[:, 1]
    np.testing.assert_array_equal(begins, np.concatenate([[0], np.cumsum(lengths)[:-1]]))
    assert lengths.sum() == tokens + padding
    # every slot feeds each branch of its member once, and is guided by exactly those tokens
    feeds = np.bincount(built.source[:tokens], minlength=slots)
    expected = np.concatenate([np.full(tables.slot_count(m), len(m.branches)) for m in members])
    np.testing.assert_array_equal(feeds, expected)
    np.testing.assert_array_equal(built.source[built.guidance_index], np.repeat(np.arange(slots)[:, None], 4, axis=1))
    np.testing.assert_array_equal((built.guidance_weight != 0).sum(1), expected)
    assert built.frame.max() + 1 == built.frames


@pytest.mark.parametrize("members", PACKS, ids=lambda pack: "+".join(str(m.frames) for m in pack))
def test_packing_only_shifts_a_members_tables(members):
    packed = tables.build(members, guidance_branches=4)
    slot = token = frame = 0
    for member in members:
        alone = tables.build([member], guidance_branches=4)
        here = slice(token, token + len(alone.source))
        np.testing.assert_array_equal(packed.source[here] - slot, alone.source)
        np.testing.assert_array_equal(packed.position[here], alone.position)
        np.testing.assert_array_equal(packed.frame[here] - frame, alone.frame)
        np.testing.assert_array_equal(packed.guidance_index[slot : slot + alone.slots] - token, alone.guidance_index)
        slot, token, frame = slot + alone.slots, token + len(alone.source), frame + alone.frames


def cached(frames, height, width, begins):
    member = Member(frames, height, width, len(begins))
    places = zip(member.branches, begins, strict=True)
    member.branches = tuple(replace(branch, cache_begin=begin) for branch, begin in places)
    return member


def test_frames_that_do_not_run_are_read_from_the_cache():
    """Three members: one runs frames 1 and 3 of 4, one all of its frames, one has no rows of its own."""
    members = [cached(4, 2, 3, (100, 200)), cached(2, 1, 2, (40,)), Member(2, 2, 1, 1)]
    running = [(1, 3), None, None]
    count = sum(tables.token_count(member, own) for member, own in zip(members, running, strict=True))
    assert count == 2 * 2 * 6 + 4 + 4
    whole = tables.build(members, guidance_branches=4)
    part = tables.build(members, guidance_branches=4, tokens=count + 5, running=running, cache_rows=1000)
    assert (part.slots, len(part.source)) == (24 + 4 + 4, count + 5)
    # the tokens that run are those of the whole pack, with the same positions, frames and slots
    kept = np.concatenate([np.flatnonzero((whole.source < 24) & np.isin(whole.source // 6, (1, 3))), np.arange(48, 56)])
    for name in ("source", "position", "frame"):
        np.testing.assert_array_equal(getattr(part, name)[:count], getattr(whole, name)[kept])
    # each writes its key where its sequence reads it; members without rows, and padding, behind all rows
    np.testing.assert_array_equal(part.q_range, [(0, 12), (12, 12), (24, 4), (28, 4), (32, 5)])
    np.testing.assert_array_equal(part.kv_range, [(100, 24), (200, 24), (40, 4), (1028, 4), (1032, 5)])
    running_slots = np.r_[6:12, 18:24]
    expected = np.r_[100 + running_slots, 200 + running_slots, 40:44, 1028:1032, 1032:1037]
    np.testing.assert_array_equal(part.kv_index, expected)
    # a slot that does not run gets no velocity, and points to a token of its own member
    still = ~np.isin(np.arange(24), running_slots)
    assert not part.guidance_weight[:24][still].any()
    assert (part.guidance_index[:24] < 24).all()
    np.testing.assert_array_equal(part.guidance_weight[:24][~still], whole.guidance_weight[:24][~still])
    own = part.source[part.guidance_index[:24][~still]]
    np.testing.assert_array_equal(own, running_slots[:, None].repeat(4, axis=1))
    assert part.frames == whole.frames + 1


def test_a_cache_without_skipping_only_moves_keys():
    members = [cached(2, 2, 2, (8, 0))]
    plain, moved = (tables.build(members, guidance_branches=4, cache_rows=rows) for rows in (None, 16))
    assert plain.kv_index is None
    for name in ("source", "position", "frame", "q_range", "text_range", "guidance_index", "guidance_weight"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(plain, name))
    np.testing.assert_array_equal(moved.kv_index, [*range(8, 16), *range(8)])
    np.testing.assert_array_equal(moved.kv_range, [(8, 8), (0, 8)])


def shown(frames, height, width, pictures):
    """A member whose branches read its own conditions where ``pictures`` says so."""
    member = Member(frames, height, width, len(pictures))
    member.branches = tuple(
        replace(branch, picture=seen) for branch, seen in zip(member.branches, pictures, strict=True)
    )
    member.conditions = np.random.default_rng(width).standard_normal((height * width, 5)).astype(np.float32)
    return member


@pytest.mark.parametrize("padding", [0, 9])
def test_a_layout_carries_text_and_conditions(padding):
    members = [shown(1, 2, 3, (True, True, False)), shown(1, 1, 2, (False, False)), shown(1, 3, 1, (True,))]
    blank = np.arange(5, dtype=np.float32)
    layout = tables.Layout(blank=blank, carries_text=True, centred_in=8)
    count = sum(tables.token_count(member) for member in members)
    built = tables.build(members, guidance_branches=4, tokens=count + padding, layout=layout)
    # what is shown: the blank row, then the pictures of those that show any
    expected = np.concatenate([blank[None], members[0].conditions, members[2].conditions])
    np.testing.assert_array_equal(built.conditions, expected)
    rows = [*range(1, 7), *range(1, 7), *[0] * 6, *[0] * 4, *range(7, 10), *[0] * padding]
    np.testing.assert_array_equal(built.condition_source, rows)
    # text: each sequence carries its own rows of the arena, in order, under its own frame
    lengths = [3, 4, 5, 3, 4, 3, *([0] if padding else [])]
    begins = np.cumsum(lengths) - lengths
    np.testing.assert_array_equal(built.text_range, np.stack([begins, lengths], axis=1))
    branches = [branch for member in members for branch in member.branches]
    arena = np.concatenate([np.arange(one.text_begin, one.text_begin + one.text_length) for one in branches])
    np.testing.assert_array_equal(built.text_source, arena)
    np.testing.assert_array_equal(built.text_frame, np.repeat(np.arange(6), lengths[:6]))
    assert built.frame.max() + 1 == built.frames == 6 + bool(padding)
    # the grid lies in the middle of 8 x 8
    np.testing.assert_array_equal(built.position[:6], [(0, 3 + token // 3, 2 + token % 3) for token in range(6)])
    assert set(built.arrays()) == {item.name for item in fields(built)} - {"frames", "kv_index"}


def test_the_plain_layout_has_none_of_it():
    built = tables.build([Member(2, 3, 5, 2)], guidance_branches=4)
    carried = {"conditions", "condition_source", "text_source", "text_frame", "kv_index"}
    assert set(built.arrays()) == {item.name for item in fields(built)} - {"frames"} - carried
    text_alone = tables.build([Member(1, 3, 5, 2)], guidance_branches=4, layout=tables.Layout(carries_text=True))
    assert set(text_alone.arrays()) & carried == {"text_source", "text_frame"}


def test_arena_shares_keys_and_never_overlaps():
    random = np.random.default_rng(0)
    arena = Arena(64)
    held = []
    for _ in range(300):
        if held and random.random() < 0.5:
            arena.release(held.pop(random.integers(len(held))))
            continue
        length = int(random.integers(1, 30))
        span = arena.acquire((int(random.integers(20)), length), length)
        span.fresh = False
        held.append(span)
        arena.capacity = arena.required
        spans = {id(item): item for item in held}.values()
        used = np.zeros(arena.capacity, int)
        for item in spans:
            used[item.begin : item.begin + item.length] += 1
        assert used.max() == 1
        assert max(item.begin + item.length for item in spans) <= arena.capacity


def test_arena_grows_only_when_the_caller_says_so():
    arena = Arena(8)
    span = arena.acquire("large", 40)
    assert (arena.capacity, arena.required) == (8, 64)
    arena.release(span)  # the store could not grow: the rows are forgotten
    assert arena.required == 8


def test_arena_keeps_released_rows_until_the_place_is_needed():
    arena = Arena(10)
    first = arena.acquire("a", 6)
    first.fresh = False
    arena.release(first)
    assert arena.acquire("a", 6) is first
    arena.release(first)
    assert arena.acquire("b", 8).begin == 0
    assert arena.capacity == 10
    assert arena.acquire("a", 2) is not first
