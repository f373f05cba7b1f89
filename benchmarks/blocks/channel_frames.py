"""The pictures of a scene that UniVG's tasks show or make, by name; both training and evaluation take them from here.

Beside picture, depth, pose, hole, edited and reference0 to reference2, which ``frames`` makes: canvas (a part of the
picture on grey), layout (each thing's box filled with its colour) and mask0 to mask2 (each thing in white on black).
References are seen by the image encoder alone, and so have no latents.
"""

from dataclasses import replace

import maps
import numpy as np
from frames import MAX_THINGS, SceneFrames, Story, scene_frames
from numpy.typing import NDArray
from world import Float, Rendering

Box = tuple[int, int, int, int]
SHARED = ("picture", "depth", "pose", "hole", "edited")
REFERENCE_NAMES = tuple(f"reference{index}" for index in range(MAX_THINGS))
FRAME_NAMES = (*SHARED, "canvas", "layout", *(f"mask{index}" for index in range(MAX_THINGS)))
EXTENSION = (0.2, 0.45)  # of the canvas' side, what outpainting adds on a side


def channel_frames(seed: int, side: int = 64, wanted: set[str] | None = None) -> SceneFrames:
    """Render the square pictures of scene ``seed``; ``wanted`` leaves out what is not needed (None is everything)."""
    names = {*FRAME_NAMES, *REFERENCE_NAMES} if wanted is None else wanted
    frames = scene_frames(seed, side, names.intersection((*SHARED, *REFERENCE_NAMES)) | {"picture"})
    rendering, pictures = frames.rendering, dict(frames.pictures)
    if "canvas" in names:
        pictures["canvas"] = maps.with_hole(rendering.picture, beyond(kept_part(seed, side), side))
    if "layout" in names:
        pictures["layout"] = layout_map(frames.story, rendering)
    for index in range(len(frames.story.scene.things)):
        if f"mask{index}" in names:
            pictures[f"mask{index}"] = np.repeat((rendering.thing == index)[..., None], 3, 2).astype(np.float32)
    return replace(frames, pictures={name: pictures[name] for name in pictures if name in names})


def render_channels(seed: int, side: int) -> NDArray[np.uint8]:
    """Return (len(FRAME_NAMES), side, side, 3) pictures of a scene; masks it has no thing for are black."""
    pictures = channel_frames(seed, side, set(FRAME_NAMES)).pictures
    stack = np.zeros((len(FRAME_NAMES), side, side, 3), np.uint8)
    for index, name in enumerate(FRAME_NAMES):
        if name in pictures:
            stack[index] = np.round(pictures[name] * 255)
    return stack


def kept_part(seed: int, side: int) -> Box:
    """Return the (left, top, right, bottom) of the picture that outpainting is given: one or two sides are cut off."""
    random = np.random.default_rng([seed, 0x0117])
    cut = np.zeros(4, int)
    for place in random.permutation(4)[: int(random.integers(1, 3))]:
        cut[place] = round(random.uniform(*EXTENSION) * side)
    left, top, right, bottom = (int(pixels) for pixels in cut)
    return left, top, side - right, side - bottom


def beyond(part: Box, side: int) -> NDArray[np.bool_]:
    """Return where the canvas (side, side) is new."""
    left, top, right, bottom = part
    mask = np.ones((side, side), bool)
    mask[top:bottom, left:right] = False
    return mask


def drawing_order(story: Story) -> list[int]:
    """Return the things of a scene in the order in which a layout names and draws them; later ones lie on top."""
    return [int(each) for each in np.random.default_rng([story.seed, 0x1A70]).permutation(len(story.scene.things))]


def layout_boxes(story: Story, rendering: Rendering) -> dict[str, Box]:
    """Return {thing: its visible box} in the drawing order."""
    boxes = maps.boxes_of(rendering, len(story.scene.things))
    named = {story.scene.things[index].name: boxes[index] for index in drawing_order(story)}
    return {name: box for name, box in named.items() if box is not None}


def layout_legend(story: Story) -> dict[str, str]:
    """Return {thing: name of its block's colour} in the drawing order."""
    return {story.scene.things[index].name: story.colours[index] for index in drawing_order(story)}


def layout_map(story: Story, rendering: Rendering) -> Float:
    """Return filled boxes on black."""
    canvas, legend = np.zeros_like(rendering.picture), layout_legend(story)
    for name, (left, top, right, bottom) in layout_boxes(story, rendering).items():
        canvas[top:bottom, left:right] = maps.mask_colour(legend[name])
    return canvas
