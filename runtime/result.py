"""What a request gives back."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from framert.runtime import annotations, output
from framert.runtime.arrays import Floats
from framert.runtime.cameras import Cameras
from framert.runtime.components import Components, clocked
from framert.runtime.errors import BackendError
from framert.runtime.images import to_picture
from framert.runtime.sequence import Sequence

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Pictures and whatever else the task returns; None where it does not.

    images: one picture per generated picture frame. pixels: the same before rounding, (n, h, w, 3) float32 in 0..1.
    latents: (generated frames, channels, h/8, w/8) float32, in the transformer's scale, ray frames included.
    depth: (h, w) float32 in 0..1, near is 1. masks: name -> (h, w) bool. boxes: name -> (left, top, right, bottom) in
    pixels, or None where the colour is absent. cameras: of the generated ray frames in order, relative to view 0,
    whose rays may be given ones; the estimate of view 0 itself is the identity.
    timings: seconds per graph, "denoiser" shared with whoever ran in the same calls, and "total".
    settings: with the pictures (and the noise, if it was given) everything needed to repeat the result: the arguments
    of run() or generate() under their names, cameras as Cameras.to_json lists them. "full_prompt" is what they made
    the model read.
    """

    images: list[Image]
    pixels: Floats
    latents: Floats
    depth: Floats | None
    masks: Mapping[str, npt.NDArray[np.bool_]] | None
    boxes: Mapping[str, Box | None] | None
    cameras: Cameras | None
    timings: Mapping[str, float]
    settings: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write the pictures to ``path`` and what else there is beside them; return the files.

        Args:
            path: ending in .png, .jpg or .webp; runtime/output.py lists what becomes of it.
            force: replace files that exist.
        Raises: OutputError; nothing is written then.
        """
        return output.write([self], path, force=force)[0].all


def finish(sequence: Sequence, components: Components, submitted: float) -> Result:
    """Decode a finished sequence.

    Args:
        submitted: time.perf_counter() when the request came in.
    Raises: BackendError if the model produced NaN or infinity.
    """
    job, seconds = sequence.job, sequence.seconds
    latents = sequence.generated(sequence.latents)
    if not np.isfinite(latents).all():
        raise BackendError("the model produced NaN or infinity for this request; try another seed, noise or precision")
    composition = job.composition
    kinds = [kind for kind, generate in zip(composition.kinds, composition.mask, strict=True) if generate]
    pictures = [components.decode(frame, seconds) for frame, kind in zip(latents, kinds, strict=True) if kind != "rays"]
    rays = [frame for frame, kind in zip(latents, kinds, strict=True) if kind == "rays"]
    pixels = np.stack(pictures) if pictures else np.zeros((0, job.size[1], job.size[0], 3), np.float32)
    with clocked(seconds, "outputs"):
        cameras = Cameras.from_rays(np.stack(rays), rebase=bool(composition.mask[1])) if rays else None
        wanted, names = composition.output, composition.colors
        result = Result(
            images=[to_picture(picture) for picture in pictures],
            pixels=pixels,
            latents=latents,
            depth=annotations.depth(pixels[0]) if wanted == "depth" else None,
            masks=annotations.masks(pixels[0], names) if wanted == "masks" else None,
            boxes=annotations.boxes(pixels[0], names) if wanted == "boxes" else None,
            cameras=cameras,
            timings=seconds,
            settings=job.settings,
        )
    seconds["total"] = time.perf_counter() - submitted
    return result
