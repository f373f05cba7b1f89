"""UniVG's tasks, one row each. Steps and guidance are ours: none are published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from framert.runtime.families.univg import prompts
from framert.runtime.manifest import Manifest
from framert.runtime.task import Task
from framert.runtime.tokenizer import PLACEHOLDER

# What a task's picture shows, and where it is to be painted anew.
Shown = Literal["nothing", "source", "hole", "canvas", "blocks", "references"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTask(Task):
    """One row of the table.

    shown: "nothing": no picture; "source": the given one; "hole": the given one with its hole in grey; "canvas": the
    given one on a larger grey canvas; "blocks": a filled rectangle per box; "references": features in the prompt.
    painted: whether all of the picture is painted anew, where ``shown`` does not say it. write: makes the prompt.
    named_by_prompt: the result's one mask is of what the prompt says.
    """

    shown: Shown = "source"
    painted: bool = True
    write: Callable[[prompts.Words], str] = prompts.text
    named_by_prompt: bool = False


_ROWS = (
    ChannelTask(
        name="text_to_image",
        summary="a picture from words",
        token="<t2i>",
        images=(0, 0),
        shown="nothing",
        prompt_required=True,
        size_rule="native",
    ),
    ChannelTask(
        name="inpaint",
        summary="a picture with its hole filled",
        token="<inpaint>",
        shown="hole",
        needs=("hole",),
        image_guidance=1.5,
    ),
    ChannelTask(
        name="outpaint",
        summary="a picture continued beyond its edges",
        token="<outpaint>",
        shown="canvas",
        needs=("extend",),
        image_guidance=1.5,
    ),
    ChannelTask(
        name="edit",
        summary="a picture changed as the prompt says",
        token="<ie>",
        painted=False,
        prompt_required=True,
        image_guidance=1.5,
    ),
    ChannelTask(
        name="identity",
        summary="a new picture of the person in one to three pictures",
        token=PLACEHOLDER,
        images=(1, 3),
        shown="references",
        write=prompts.references,
        prompt_required=True,
        takes=("captions",),
    ),
    ChannelTask(
        name="layout_to_image",
        summary="a picture with named things in given boxes",
        token="<lg>",
        images=(0, 0),
        shown="blocks",
        write=prompts.layout,
        needs=("boxes",),
        takes=("colors",),
        image_guidance=1.5,
        size_rule="native",
    ),
    ChannelTask(
        name="image_to_depth",
        summary="depth of a picture",
        token="<depth>",
        output="depth",
        guidance=2.0,
        image_guidance=1.0,
    ),
    ChannelTask(
        name="image_to_pose", summary="body pose of a picture", token="<pose>", guidance=2.0, image_guidance=1.0
    ),
    ChannelTask(
        name="segment",
        summary="the mask of what the prompt refers to",
        token="<seg>",
        prompt_required=True,
        named_by_prompt=True,
        output="masks",
        guidance=2.0,
        image_guidance=1.0,
    ),
)
TASKS: Mapping[str, ChannelTask] = {row.name: row for row in _ROWS}
# Stable Diffusion 3 as published: no task tokens, its pipeline's own steps and guidance.
PLAIN = replace(TASKS["text_to_image"], token="", steps=28, guidance=7.0)


def tasks_of(manifest: Manifest) -> dict[str, ChannelTask]:
    """Return the tasks a bundle can do: with condition channels all but what lacks its graph, else from words alone."""
    references = {name for name, row in TASKS.items() if row.shown == "references"}
    if not manifest.model.condition_channels:
        return {PLAIN.name: PLAIN}
    absent = set() if "image_encoder" in manifest.graphs else references
    return {name: row for name, row in TASKS.items() if name not in absent}
