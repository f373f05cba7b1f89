"""What training never shows: some things (a colour and a shape together), and some pairs of things in one scene.

Every colour and every shape of a held-out thing is known from others; both things of a held-out pair are known from
other scenes. So they tell whether words are understood by themselves. Edits and references count as shown.
"""

import zlib
from collections.abc import Iterable, Iterator
from itertools import combinations, count

from frames import Story, tell
from world import FIRST_TRAINING_SEED, Scene

THINGS = frozenset({"purple cone", "cyan cylinder", "orange cube", "pink sphere"})
PAIRS_ONE_IN = 10  # of the pairs of known things


def held_out_pair(first: str, second: str) -> bool:
    """Return whether two things ("red cube") are never shown in one scene though each is shown by itself."""
    return zlib.crc32(" ".join(sorted((first, second))).encode()) % PAIRS_ONE_IN == 0


def novelty(scene: Scene) -> str:
    """Return what of a scene is new to a trained model: "things", "pairs", or "" where nothing is."""
    return novelty_of([thing.name for thing in scene.things])


def novelty_of(names: Iterable[str]) -> str:
    """Return what of things together ("red cube", ...) is new to a trained model: "things", "pairs", or ""."""
    names = sorted(set(names))  # a prompt may name a thing twice
    if not THINGS.isdisjoint(names):
        return "things"
    return "pairs" if any(held_out_pair(*pair) for pair in combinations(names, 2)) else ""


def shown(story: Story) -> bool:
    """Return whether a scene may be trained on: nothing in it or in its edit is held out."""
    return not novelty(story.scene) and not novelty(story.edit.scene)


def training_stories(scenes: int) -> list[Story]:
    """Return the first ``scenes`` stories that may be trained on; their seeds begin at FIRST_TRAINING_SEED."""
    made = _all_shown()
    return [next(made) for _ in range(scenes)]


def _all_shown() -> Iterator[Story]:
    return (story for story in map(tell, count(FIRST_TRAINING_SEED)) if shown(story))
