"""Training samples of UniVG on Blocks: what a task shows beside the noise, where it paints, and its prompt.

Prompts are written by the runtime's own task table, masks by its own rule, so that training and use cannot drift apart.
"""

from dataclasses import dataclass

import maps
import numpy as np
import referring
from channel_edits import WORDS as EDIT_WORDS
from channel_edits import changes
from channel_frames import beyond, kept_part, layout_legend
from frames import Story, caption, vocabulary
from numpy.typing import NDArray

from framert.runtime.colors import COLORS
from framert.runtime.families.univg.prompts import Words
from framert.runtime.families.univg.task_table import TASKS
from framert.runtime.tokenizer import PLACEHOLDER

# How often each task is drawn. What must obey words or find a place learns last: it gets more.
WEIGHTS = {
    "text_to_image": 2.5, "inpaint": 0.7, "outpaint": 0.5, "edit": 1.5, "identity": 1.5, "layout_to_image": 3.5,
    "image_to_depth": 0.6, "image_to_pose": 0.5, "segment": 1.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence: names of the frame to make and of the one that is shown ("" for none), and the prompt.

    painted: where the frame that is shown is painted anew: everywhere, nowhere, or a (height, width) map in pixels.
    Placeholders in the prompt stand for the scene's references, in order.
    """

    task: str
    target: str
    shown: str
    painted: bool | NDArray[np.bool_]
    prompt: str


def words_of_prompts() -> list[str]:
    """Return every word that a prompt can hold, for the tokenizer."""
    tokens = sorted(TASKS[task].token for task in WEIGHTS if TASKS[task].token != PLACEHOLDER)
    legend = [f"<{colour}:" for colour in COLORS]
    return [*tokens, *legend, *vocabulary(), *EDIT_WORDS, *referring.WORDS]


def draw_task(random: np.random.Generator) -> str:
    """Return a task by WEIGHTS."""
    weights = np.array(list(WEIGHTS.values()))
    return str(random.choice(list(WEIGHTS), p=weights / weights.sum()))


def make_sample(task: str, story: Story, side: int, random: np.random.Generator) -> Sample:
    """Return one sample of ``task`` for a scene of which at least one thing is to be seen."""
    scene = story.scene
    words = caption(scene)
    optional = words if random.random() < 0.5 else ""  # tasks that work without a caption learn both
    if task == "text_to_image":
        return Sample(task, "picture", "", True, write(task, words))
    if task == "identity":
        return _references(story, random)
    if task == "edit":
        change = changes(story)[int(random.integers(2))]
        before, after = change.frames
        return Sample(task, after, before, TASKS[task].painted, write(task, change.instruction))
    if task == "inpaint":
        return Sample(task, "picture", "hole", maps.hole_mask(story.seed, (side, side)), write(task, optional))
    if task == "outpaint":
        return Sample(task, "picture", "canvas", beyond(kept_part(story.seed, side), side), write(task, optional))
    if task == "layout_to_image":
        said = str(random.choice([words, words, f"on {scene.ground} ground", ""]))
        return Sample(task, "picture", "layout", TASKS[task].painted, write(task, said, layout_legend(story)))
    if task == "segment":
        meant = referring.draw_expression(scene, random)
        return Sample(task, f"mask{meant.thing}", "picture", TASKS[task].painted, write(task, meant.text))
    kind = task.removeprefix("image_to_")
    return Sample(task, kind, "picture", TASKS[task].painted, write(task, optional))


def draw_sample(story: Story, side: int, random: np.random.Generator) -> Sample:
    """Return a sample of a task drawn by WEIGHTS."""
    return make_sample(draw_task(random), story, side, random)


def write(task: str, prompt: str, colours: dict[str, str] | None = None, captions: tuple[str, ...] = ()) -> str:
    """Return the prompt as the runtime writes it."""
    row = TASKS[task]
    return row.write(Words(token=row.token, prompt=prompt, colors=colours or {}, captions=captions))


def _references(story: Story, random: np.random.Generator) -> Sample:
    """The scene from pictures of its first things, whose colours the prompt then leaves out."""
    count = 1 + int(random.integers(len(story.scene.things)))
    captions = tuple(f"a {thing.shape}" for thing in story.scene.things[:count])
    prompt = write("identity", caption(story.scene, plain=count), captions=captions)
    return Sample("identity", "picture", "", True, prompt)
