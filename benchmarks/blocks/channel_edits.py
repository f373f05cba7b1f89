"""Edits of Blocks in both directions: read backwards, an edit recolours a thing back, or adds what was removed."""

from dataclasses import dataclass

from frames import Story
from world import Scene, Thing

WORDS = ("add", "a", "an", "left", "right", "of", "between", "and", "the", "make", "remove")


@dataclass(frozen=True, slots=True)
class Change:
    """kind: recolour, remove or add; frames: names of the picture before and of the one after."""

    kind: str
    instruction: str
    frames: tuple[str, str]


def changes(story: Story) -> tuple[Change, Change]:
    """Return the story's edit as it is told, and backwards."""
    edit = story.edit
    assert edit.before is not None
    if edit.after is None:
        back = Change("add", f"add {_article(edit.before.name)} {place_of(story.scene, edit.before)}",
                      ("edited", "picture"))  # fmt: skip
        return Change("remove", edit.instruction, ("picture", "edited")), back
    back = Change("recolour", f"make the {edit.after.name} {edit.before.colour}", ("edited", "picture"))
    return Change("recolour", edit.instruction, ("picture", "edited")), back


def asked_change(story: Story) -> Change:
    """Return the edit that evaluation asks of a scene: as it is told; of odd seeds, removals backwards."""
    told, back = changes(story)
    return back if back.kind == "add" and story.seed % 2 else told


def place_of(scene: Scene, thing: Thing) -> str:
    """Return where a thing stands beside others: "left of the red cube", "between the red cube and the pink cone"."""
    index = scene.things.index(thing)
    before, after = scene.things[:index], scene.things[index + 1 :]
    if before and after:
        return f"between the {before[-1].name} and the {after[0].name}"
    return f"right of the {before[-1].name}" if before else f"left of the {after[0].name}"


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
