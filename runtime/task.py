"""What every task of every family has in common: what it takes, what it gives back, and its own values."""

from dataclasses import dataclass

from framert.runtime.composition import CAMERAS_HINT, Output, SizeRule

# What a task may need besides pictures and a prompt, and how to give it.
EXTRAS = {
    "colors": "colors={'red cube': 'cyan'} (--color 'red cube=cyan')",
    "hole": "hole=a mask picture, white where to fill (--hole FILE)",
    "captions": "captions=[...], one per given picture (--caption)",
    "item": "item='red cube', what the given picture shows (--item)",
    "cameras": CAMERAS_HINT,
    "boxes": "boxes={'red cube': (left, top, right, bottom)}, in pixels of the result (--box 'red cube=8,24,40,56')",
    "extend": "extend=(left, top, right, bottom), pixels to add on each side of the picture (--extend 64,0,64,0)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row of a family's table; a family adds what it composes its tasks by.

    images: fewest and most that can be given, None without a limit. needs, takes: names in EXTRAS that must and that
    may be given. token: the word its prompts begin with. output: what a result holds besides pictures.
    steps, guidance, image_guidance: what is taken where the caller names nothing; image_guidance None: the task has no
    guidance by its picture.
    """

    name: str
    summary: str
    token: str
    images: tuple[int, int | None] = (1, 1)
    prompt_required: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    output: Output | None = None
    steps: int = 50
    guidance: float = 4.0
    image_guidance: float | None = None
    size_rule: SizeRule = "aspect"

    @property
    def extras(self) -> tuple[str, ...]:
        """Names in EXTRAS that may be given, those that must be first."""
        return self.needs + self.takes
