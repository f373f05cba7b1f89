"""Real tasks run end to end: what calibration listens to, and what precisions are compared on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import framert
from framert.export.weights import Array

# Plain captions that any model of the family understands; Blocks shows them.
PROMPTS = (
    "a red cube and a blue sphere on grey ground",
    "a yellow cone, a pink cylinder and a green cube on sand ground",
)
MAX_SIDE = 16  # tokens: larger native sizes are rehearsed at this many a side, which shows the same activations
VIEWS = ((0.0, 30.0), (20.0, 20.0), (1.6, 1.6))  # azimuths and elevations in degrees, distances


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """latents: of each task, (generated frames, channels, h, w). pictures: what later tasks were given."""

    latents: Mapping[str, Array]
    pictures: Mapping[str, Any]


def rehearse(
    pipeline: framert.Pipeline,
    *,
    steps: int,
    seed: int,
    given: Mapping[str, Any] | None = None,
    on_step: Callable[[Any], None] | None = None,
) -> Rehearsal:
    """Run tasks that between them have every kind of frame the model takes: made and given pictures, maps and rays.

    The given pictures are earlier tasks' results, so nothing but the model is needed.

    Args:
        given: pictures of another rehearsal to use instead, so that both do the same.
        on_step: as for ``Pipeline.run``.
    """
    model, native = pipeline.manifest.model, pipeline.manifest.native_side
    side = min(native, MAX_SIDE * model.multiple)
    latents: dict[str, Array] = {}
    pictures: dict[str, Any] = {}

    def run(task: str, name: str, number: int, **arguments: Any) -> None:
        result = pipeline.run(task, steps=steps, seed=seed + number, size=(side, side), on_step=on_step, **arguments)
        latents[name] = result.latents
        pictures[name] = given[name] if given is not None else result.images[0]

    run("text_to_image", "text_to_image", 0, prompt=PROMPTS[0])
    run("text_to_image", "text_to_image, other prompt", 1, prompt=PROMPTS[1])
    if model.max_frames > 1 or model.condition_channels:  # there is a place for a given picture
        run("image_to_depth", "image_to_depth", 2, images=[pictures["text_to_image"]])
    if model.max_frames > 1:
        run("depth_to_image", "depth_to_image", 3, images=[pictures["image_to_depth"]], prompt=PROMPTS[0])
        run(
            "image_to_multiview",
            "image_to_multiview",
            4,
            images=[pictures["text_to_image, other prompt"]],
            prompt=PROMPTS[1],
            cameras=framert.Cameras.orbit(*VIEWS),
        )
    if model.condition_channels:  # the mask beside a picture is all 1 in the tasks before
        run("edit", "edit", 5, images=[pictures["text_to_image"]], prompt="make the cube green")
    return Rehearsal(latents, pictures)
