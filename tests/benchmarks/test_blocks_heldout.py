"""What is held out of Blocks' training is never trained on, and all its colours and shapes still are."""

import sys
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import frames  # noqa: E402
import heldout  # noqa: E402
import world  # noqa: E402

sys.path.remove(FOLDER)

NAMES = [f"{colour} {shape}" for colour in world.COLOURS for shape in world.SHAPES]


@pytest.fixture(scope="module")
def stories():
    return heldout.training_stories(400)


def test_nothing_held_out_is_named_or_shown_in_training(stories):
    for story in stories:
        assert story.seed >= world.FIRST_TRAINING_SEED
        for scene in (story.scene, story.edit.scene):
            words = frames.caption(scene)
            assert not any(name in words for name in heldout.THINGS)
            assert not any(heldout.held_out_pair(a.name, b.name) for a, b in combinations(scene.things, 2))
    assert sorted({story.seed for story in stories}) == [story.seed for story in stories]


def test_colours_shapes_and_other_things_are_all_shown(stories):
    shown = {thing.name for story in stories for thing in story.scene.things}
    assert shown == set(NAMES) - heldout.THINGS
    assert {name.split()[1] for name in heldout.THINGS} == set(world.SHAPES)


def test_about_a_tenth_of_the_pairs_is_held_out_whatever_their_order():
    pairs = list(combinations(NAMES, 2))
    held = [pair for pair in pairs if heldout.held_out_pair(*pair)]
    assert 0.06 < len(held) / len(pairs) < 0.14
    assert all(heldout.held_out_pair(b, a) for a, b in held)


def test_every_kind_of_novelty_is_among_the_held_out_scenes():
    kinds = [heldout.novelty(world.sample_scene(seed)) for seed in range(200)]
    counts = {kind: kinds.count(kind) for kind in ("", "things", "pairs")}
    assert sum(counts.values()) == 200
    assert min(counts.values()) > 10


def test_the_rule_does_not_move():
    """A trained model is judged by it: another rule would call what it saw new."""
    seeds = [story.seed - world.FIRST_TRAINING_SEED for story in heldout.training_stories(12)]
    assert seeds == [0, 1, 2, 4, 7, 8, 9, 10, 11, 14, 17, 19]
