"""Training samples of Blocks: which frames, mask and prompt each task of the published table makes of a scene."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from frames import VIEWS, Story, caption, vocabulary

from framert.runtime.colors import COLORS, hexadecimal
from framert.runtime.families.onediffusion.prompts import Words
from framert.runtime.families.onediffusion.task_table import TASKS

# How often each task is drawn among those with its number of frames. What must obey words or see solids learns last;
# sharp edges were still missed after 10,200 steps with half as many of them, cameras after 14,000 with a third.
WEIGHTS = {
    "text_to_image": 1.0,
    "edit": 2.0, "semantic_to_image": 2.0, "image_to_semantic": 2.5, "boxes_to_image": 1.0, "image_to_boxes": 1.0,
    "depth_to_image": 1.0, "image_to_depth": 0.7, "canny_to_image": 0.6, "image_to_canny": 0.3, "hed_to_image": 0.4,
    "image_to_hed": 0.3, "pose_to_image": 0.5, "image_to_pose": 0.4, "deblur": 1.5, "inpaint": 1.0, "identity": 1.2,
    "subject": 1.0, "image_to_multiview": 1.5, "text_to_multiview": 0.5, "camera_pose": 10.0,
}  # fmt: skip
# A frame of rays holds six numbers, all smooth: its loss is a tenth of a picture's, and so was its say in each update.
EMPHASIS = {"camera_pose": 4.0}
# Steps by number of frames in a sequence: all sequences of a step are equally long. Words and maps are learned early;
# then views, which learn last, get more.
FRAME_COUNTS = {1: 0.17, 2: 0.50, 3: 0.04, 4: 0.25, 6: 0.04}
LATER_FRAME_COUNTS = {1: 0.08, 2: 0.32, 3: 0.03, 4: 0.50, 6: 0.07}
LATER = 2500  # steps


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence: names of frames (``rays`` k for those of view k), 1 = generate, and the prompt.

    ``views`` are the story's views in the order in which the sequence shows them; rays are relative to the first.
    """

    task: str
    frames: tuple[str, ...]
    mask: tuple[int, ...]
    prompt: str
    views: tuple[int, ...] = ()


def words_of_prompts() -> list[str]:
    """Return every word that a prompt of Blocks can hold, for the tokenizer."""
    tokens = sorted({task.token for task in TASKS.values()})
    codes = [f"<{hexadecimal(colour)}" for colour in COLORS.values()]
    legends = ["mask:", "boundingbox:", "<item:", *(f"[[img{index}]]" for index in range(4))]
    return [*tokens, *codes, *legends, *vocabulary()]


def draw_frames(random: np.random.Generator, step: int = 0) -> int:
    """Return a number of frames as often as training draws it after ``step`` steps."""
    counts = FRAME_COUNTS if step < LATER else LATER_FRAME_COUNTS
    return int(random.choice(list(counts), p=list(counts.values())))


def draw_task(frames: int, random: np.random.Generator) -> str:
    """Return a task that can have ``frames`` frames, by WEIGHTS."""
    able = [task for task in WEIGHTS if frames in _lengths(task)]
    weights = np.array([WEIGHTS[task] for task in able])
    return str(random.choice(able, p=weights / weights.sum()))


def _lengths(task: str) -> tuple[int, ...]:
    if task == "text_to_image":
        return (1,)
    if task == "identity":
        return (2, 3, 4)
    return (4, 6) if TASKS[task].multiview else (2,)


def make_sample(task: str, frames: int, story: Story, random: np.random.Generator) -> Sample:
    """Return one sample of ``task``; identity takes at most as many references as the scene has things."""
    if TASKS[task].multiview:
        return _multiview(task, frames // 2, story, random)
    words = caption(story.scene)
    optional = words if random.random() < 0.5 else ""  # tasks that work without a caption learn both
    legend = {thing.name: colour for thing, colour in zip(story.scene.things, story.colours, strict=True)}
    pairs = {"deblur": "blur", "inpaint": "hole"}
    if task == "text_to_image":
        return Sample(task, ("picture",), (1,), write(task, words))
    if task == "edit":
        return Sample(task, ("edited", "picture"), (1, 0), write(task, story.edit.instruction))
    if task in pairs:
        return Sample(task, ("picture", pairs[task]), (1, 0), write(task, optional))
    if task in ("identity", "subject"):
        return _references(task, frames - 1, story)
    backward = task.startswith("image_to_")
    kind = task.removeprefix("image_to_").removesuffix("_to_image")
    colours = legend if kind in ("semantic", "boxes") else {}
    prompt = write(task, optional if backward else words, colours=colours)
    return Sample(task, ("picture", kind), (0, 1) if backward else (1, 0), prompt)


def draw_sample(story: Story, random: np.random.Generator) -> Sample:
    """Return a sample of a task that can have a drawn number of frames."""
    frames = draw_frames(random)
    return make_sample(draw_task(frames, random), frames, story, random)


def write(
    task: str, prompt: str, colours: dict[str, str] | None = None, captions: Sequence[str] = (), item: str = ""
) -> str:
    """Return the prompt as the runtime writes it."""
    row = TASKS[task]
    return row.write(Words(token=row.token, prompt=prompt, colors=colours or {}, captions=captions, item=item))


def _references(task: str, count: int, story: Story) -> Sample:
    """The scene from pictures of its first things, whose colours the prompt then leaves out."""
    things = story.scene.things[:count]
    names = tuple(f"reference{index}" for index in range(len(things)))
    captions = [f"a {thing.shape}" for thing in things]
    item = things[0].shape if task == "subject" else ""
    prompt = write(task, caption(story.scene, plain=len(things)), captions=captions, item=item)
    return Sample(task, ("picture", *names), (1,) + (0,) * len(things), prompt)


def _multiview(task: str, count: int, story: Story, random: np.random.Generator) -> Sample:
    """Pictures and rays of ``count`` views. Half the time another view than the captioned one comes first."""
    views = tuple(int(view) for view in random.permutation(VIEWS)[:count])
    prompt = ""
    if task == "text_to_multiview" or random.random() < 0.5:
        views = (0, *(view for view in (*views, *range(VIEWS)) if view))[:count]
        views, prompt = tuple(dict.fromkeys(views))[:count], caption(story.scene)
    given = int(random.integers(1, count)) if task == "image_to_multiview" else 0
    pictures = [1 if task != "camera_pose" and index >= given else 0 for index in range(count)]
    rays = int(task == "camera_pose")
    frames = tuple(name for view in views for name in ("picture" if view == 0 else f"view{view}", "rays"))
    mask = tuple(value for picture in pictures for value in (picture, rays))
    return Sample(task, frames, mask, write(task, prompt), views)
