"""Referring expressions of Blocks: phrases that mean exactly one thing of a scene, as its first camera sees it.

Things of a scene stand side by side and are listed from left to right; their colours differ, their shapes need not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from world import Scene, Thing

WORDS = ("the", "thing", "left", "right", "of", "leftmost", "rightmost", "in", "middle")


@dataclass(frozen=True, slots=True)
class Expression:
    """A phrase, the number of the thing it means, and what tells that thing: name, shape, colour, relation or place."""

    text: str
    thing: int
    kind: str


def expressions(scene: Scene) -> list[Expression]:
    """Return every phrase that means one thing of ``scene`` and no other; none for an empty scene."""
    made = [*_by_looks(scene), *_by_relation(scene), *_by_place(scene)]
    return list({each.text: each for each in made}.values())


def draw_expression(scene: Scene, random: np.random.Generator) -> Expression:
    """Return one phrase: kinds are drawn alike, however many phrases each has."""
    found = expressions(scene)
    kind = str(random.choice(sorted({each.kind for each in found})))
    able = [each for each in found if each.kind == kind]
    return able[int(random.integers(len(able)))]


def _descriptions(thing: Thing) -> dict[str, str]:
    """Return what a thing may be called, and by what that tells it from others."""
    return {thing.name: "name", thing.shape: "shape", f"{thing.colour} thing": "colour", "thing": "relation"}


def _meant(scene: Scene, description: str) -> list[int]:
    return [index for index, thing in enumerate(scene.things) if description in _descriptions(thing)]


def _by_looks(scene: Scene) -> Iterator[Expression]:
    for index, thing in enumerate(scene.things):
        for description, kind in _descriptions(thing).items():
            if kind != "relation" and _meant(scene, description) == [index]:
                yield Expression(f"the {description}", index, kind)


def _by_relation(scene: Scene) -> Iterator[Expression]:
    """The cube left of the red sphere: what stands beside is told by its looks, and one thing on that side is meant."""
    for anchor in _by_looks(scene):
        for side, beside in (("left", range(anchor.thing)), ("right", range(anchor.thing + 1, len(scene.things)))):
            for index in beside:
                for description in _descriptions(scene.things[index]):
                    if [each for each in _meant(scene, description) if each in beside] == [index]:
                        yield Expression(f"the {description} {side} of {anchor.text}", index, "relation")


def _by_place(scene: Scene) -> Iterator[Expression]:
    last = len(scene.things) - 1
    if last > 0:
        yield Expression("the leftmost thing", 0, "place")
        yield Expression("the rightmost thing", last, "place")
    if last == 2:
        yield Expression("the thing in the middle", 1, "place")
