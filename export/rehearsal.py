"""Real tasks run end to end: what calibration listens to, and what ``verify`` compares precisions on."""

import framert
from framert.export.weights import Array

# Plain captions that any model of the family understands; Blocks shows them.
PROMPTS = (
    "a red cube and a blue sphere on grey ground",
    "a yellow cone, a pink cylinder and a green cube on sand ground",
)
MAX_SIDE = 16  # tokens: larger native sizes are rehearsed at this many a side, which shows the same activations
VIEWS = ((0.0, 30.0), (20.0, 20.0), (1.6, 1.6))  # azimuths and elevations in degrees, distances


def rehearse(pipeline: framert.Pipeline, *, steps: int, seed: int) -> dict[str, Array]:
    """Run tasks that between them have every kind of frame: made and given pictures, maps and rays.

    The given pictures are the first task's results, so nothing but the model is needed.
    Returns: the final latents of each task, (generated frames, channels, h, w).
    """
    model, native = pipeline.manifest.model, pipeline.manifest.native_side
    side = min(native, MAX_SIDE * model.multiple)
    size = (side, side)
    made = pipeline.run("text_to_image", prompt=list(PROMPTS), steps=steps, seed=seed, size=size)
    picture = made[0].images[0]
    depth = pipeline.run("image_to_depth", images=[picture], steps=steps, seed=seed + 10, size=size)
    again = pipeline.run(
        "depth_to_image", images=[depth.images[0]], prompt=PROMPTS[0], steps=steps, seed=seed + 20, size=size
    )
    view = pipeline.run(
        "image_to_multiview",
        images=[made[1].images[0]],
        prompt=PROMPTS[1],
        cameras=framert.Cameras.orbit(*VIEWS),
        steps=steps,
        seed=seed + 30,
        size=size,
    )
    results = {
        "text_to_image": made[0],
        "text_to_image, second prompt": made[1],
        "image_to_depth": depth,
        "depth_to_image": again,
        "image_to_multiview": view,
    }
    return {name: result.latents for name, result in results.items()}
