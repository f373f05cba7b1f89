"""Requests to measure with: for any task and size, as many different ones as are asked for, drawn from seeds.

The pictures are drawings of coloured shapes and the prompts name them. Seeds differ in both, so that what an engine
remembers of one request does not make the next one cheaper.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from framert.runtime.cameras import Cameras
from framert.runtime.families import DEFAULT, find_task
from framert.runtime.request import Request

Size = tuple[int, int]

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "pink")
SHAPES = ("cube", "sphere", "cone", "cylinder")
GROUNDS = {"grey": (120, 120, 120), "sand": (194, 178, 128), "slate": (90, 100, 115)}


@dataclass(frozen=True, slots=True)
class Kind:
    """A task of a family at a size (width, height), in solver steps; None is the task's own number."""

    task: str
    size: Size
    steps: int | None = None
    family: str = DEFAULT

    def __str__(self) -> str:
        steps = find_task(self.task, self.family).steps if self.steps is None else self.steps
        return f"{self.task} {self.size[0]}x{self.size[1]}, {steps} steps"


@dataclass(frozen=True, slots=True)
class _Thing:
    colour: str
    shape: str
    box: tuple[float, float, float, float]  # left, top, right, bottom, in sides of the picture

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def scaled(self, size: Size, shift: float = 0.0) -> list[float]:
        """Return the box in pixels of a picture (width, height), shifted to the right by so many of its sides."""
        return [(value + shift * (1 - place % 2)) * size[place % 2] for place, value in enumerate(self.box)]


def request(kind: Kind, seed: int) -> Request:
    """Return the request of a kind that ``seed`` stands for; the noise has the same seed."""
    task = find_task(kind.task, kind.family)
    random = np.random.default_rng([seed, 0xBE7C])
    things, ground = _things(random), str(random.choice(list(GROUNDS)))
    legend = {thing.name: colour for thing, colour in zip(things, ("cyan", "magenta"), strict=True)}
    masked = legend if "colors" in task.needs else {}
    given = [_draw(kind.size, things, ground, masked, turn) for turn in range(task.images[0])]
    named = " and ".join(f"a {thing.name}" for thing in things)
    extras: dict[str, Any] = {
        "colors": legend,
        "hole": _hole(kind.size, random),
        "item": things[0].name,
        "boxes": {thing.name: thing.scaled(kind.size) for thing in things},
        "extend": (kind.size[0] // 4, 0, kind.size[0] // 4, 0),
        "cameras": Cameras.orbit([0, float(random.uniform(15, 60))], [20, 20], [1.6, 1.6]),
    }
    return Request(
        task=kind.task,
        images=given,
        prompt=f"make the {things[0].name} {things[1].colour}"
        if kind.task == "edit"
        else f"{named} on {ground} ground",
        size=kind.size,
        steps=kind.steps,
        seed=seed,
        **{name: extras[name] for name in task.needs},
    )


def _things(random: np.random.Generator) -> list[_Thing]:
    colours = random.choice(COLOURS, 2, replace=False).tolist()
    shapes = random.choice(SHAPES, 2).tolist()
    things = []
    for index, (colour, shape) in enumerate(zip(colours, shapes, strict=True)):
        left, top, side = 0.5 * index + random.uniform(0.02, 0.15), random.uniform(0.3, 0.5), random.uniform(0.22, 0.32)
        things.append(_Thing(colour, shape, (left, top, left + side, top + side)))
    return things


def _draw(size: Size, things: list[_Thing], ground: str, legend: dict[str, str], turn: int) -> Image.Image:
    """Draw the things on their ground, or as flat masks on black in the legend's colours; ``turn`` shifts the view."""
    image = Image.new("RGB", size, "black" if legend else GROUNDS[ground])
    draw = ImageDraw.Draw(image)
    for thing in things:
        scaled = thing.scaled(size, 0.08 * turn)
        round_shape = thing.shape in ("sphere", "cone")
        (draw.ellipse if round_shape else draw.rectangle)(scaled, fill=legend.get(thing.name, thing.colour))
    return image


def _hole(size: Size, random: np.random.Generator) -> Image.Image:
    image = Image.new("L", size, 0)
    left, top = (random.uniform(0.1, 0.4, 2) * size).tolist()
    ImageDraw.Draw(image).rectangle((left, top, left + 0.4 * size[0], top + 0.4 * size[1]), fill=255)
    return image
