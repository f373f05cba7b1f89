"""Everything Blocks can show of one scene: its pictures and maps by name, and the words that describe them.

The names are: picture, view1, view2 (other cameras), depth, canny, hed, pose, semantic, boxes, blur, hole, edited, and
reference0 to reference2 (each thing alone, elsewhere). ``scene_frames`` is what the autoencoder and the transformer are
trained on and what ``evaluate.py`` feeds to a bundle, so training and evaluation cannot drift apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import maps
import numpy as np
from numpy.typing import NDArray
from world import COLOURS, GROUNDS, SHAPES, Float, Rendering, Scene, Thing, View, render, sample_scene, sample_views

from framert.runtime.colors import COLORS

MAX_THINGS = 3
VIEWS = 3


@dataclass(frozen=True, slots=True)
class Edit:
    """An instruction, the scene that obeys it, and the thing it is about (in the edited scene; None if removed)."""

    instruction: str
    scene: Scene
    before: Thing | None
    after: Thing | None


@dataclass(frozen=True, slots=True)
class Story:
    """What is to be said about one scene: enough for every prompt, nothing rendered."""

    seed: int
    scene: Scene
    views: list[View]
    colours: list[str]  # of each thing in the semantic map and in the boxes
    edit: Edit


@dataclass(frozen=True, slots=True)
class SceneFrames:
    """The story of one scene and its pictures, float32 (h, w, 3) in 0..1 by name."""

    story: Story
    hole: NDArray[np.bool_]
    rendering: Rendering
    pictures: dict[str, Float]


def caption(scene: Scene, plain: int = 0) -> str:
    """Return "a red cube, a blue sphere and a pink cone on sand ground", from left to right.

    The first ``plain`` things are named without their colour ("a cube"), which references then supply.
    """
    names = [thing.shape if index < plain else thing.name for index, thing in enumerate(scene.things)]
    listed = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names] or ["nothing"]
    joined = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
    return f"{joined} on {scene.ground} ground"


def sample_edit(scene: Scene, seed: int) -> Edit:
    """Return a recolouring (two in three; always where there is one thing) or a removal for ``scene``."""
    random = np.random.default_rng([seed, 0xED17])
    index = int(random.integers(len(scene.things)))
    thing = scene.things[index]
    if random.random() < 2 / 3 or len(scene.things) == 1:
        others = [colour for colour in COLOURS if all(each.colour != colour for each in scene.things)]
        colour = str(random.choice(others))
        return Edit(f"make the {thing.name} {colour}", scene.with_thing(index, colour=colour), thing,
                    replace(thing, colour=colour))  # fmt: skip
    return Edit(f"remove the {thing.name}", scene.without(index), thing, None)


def reference_scene(thing: Thing, seed: int) -> Scene:
    """Return ``thing`` alone in the middle of another place, seen by another camera."""
    random = np.random.default_rng([seed, 0x1DE7])
    alone = replace(thing, x=0.0, y=0.0, radius=float(random.uniform(0.24, 0.30)), yaw=float(random.uniform(0, 1.57)))
    view = View(random.uniform(0, 360), random.uniform(12, 38), random.uniform(1.5, 1.7))
    light = (view.azimuth + random.uniform(25, 75), random.uniform(45, 65))
    return Scene((alone,), str(random.choice(list(GROUNDS))), *light, view)


def tell(seed: int) -> Story:
    """Return the story of scene ``seed``."""
    scene = sample_scene(seed)
    random = np.random.default_rng([seed, 0xC010])
    colours = [str(name) for name in random.permutation(maps.MAP_COLOURS)[: len(scene.things)]]
    return Story(seed, scene, sample_views(scene, VIEWS, seed), colours, sample_edit(scene, seed))


def scene_frames(seed: int, side: int = 64, wanted: set[str] | None = None) -> SceneFrames:
    """Render the square pictures of scene ``seed``; ``wanted`` leaves out what is not needed (None is everything)."""
    story, size = tell(seed), (side, side)
    scene, colours = story.scene, story.colours
    rendering, hole = render(scene, size=size), maps.hole_mask(seed, size)
    makers: dict[str, Callable[[], Float]] = {
        "picture": lambda: rendering.picture,
        "depth": lambda: maps.depth_map(rendering),
        "canny": lambda: maps.canny_map(rendering),
        "hed": lambda: maps.hed_map(rendering),
        "pose": lambda: maps.pose_map(scene, scene.view, size),
        "semantic": lambda: maps.semantic_map(rendering, colours),
        "boxes": lambda: maps.boxes_map(scene, rendering, colours),
        "blur": lambda: maps.blurred(rendering.picture),
        "hole": lambda: maps.with_hole(rendering.picture, hole),
        "edited": lambda: render(story.edit.scene, scene.view, size).picture,
    }
    for index in range(1, VIEWS):
        makers[f"view{index}"] = partial(_picture, scene, story.views[index], size)
    for index, thing in enumerate(scene.things):
        alone = reference_scene(thing, MAX_THINGS * seed + index)
        makers[f"reference{index}"] = partial(_picture, alone, alone.view, size)
    pictures = {name: make() for name, make in makers.items() if wanted is None or name in wanted}
    return SceneFrames(story, hole, rendering, pictures)


def _picture(scene: Scene, view: View, size: tuple[int, int]) -> Float:
    return render(scene, view, size).picture


def vocabulary() -> list[str]:
    """Return every word that captions and instructions of Blocks are made of."""
    words = ["a", "an", "and", "on", "ground", "make", "the", "remove", "nothing"]
    return [*words, *COLOURS, *SHAPES, *GROUNDS, *COLORS]
