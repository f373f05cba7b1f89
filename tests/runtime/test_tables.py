"""Properties of the packed tables, and the arena's bookkeeping."""

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
