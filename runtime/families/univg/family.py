"""UniVG as the runtime sees it, and Stable Diffusion 3, whose transformer it is. Source: arXiv:2503.12652.

No code or weights of UniVG were published; docs/univg.md says what is the paper's and what is ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framert.runtime.arrays import Floats
from framert.runtime.composition import Composition
from framert.runtime.errors import ConfigError
from framert.runtime.families.base import Guided, Start
from framert.runtime.families.univg.plan import Picture, compose, draw_boxes, plan
from framert.runtime.families.univg.task_table import TASKS, tasks_of
from framert.runtime.guidance import check_scale, classifier_free, dual
from framert.runtime.images import fit
from framert.runtime.manifest import Manifest
from framert.runtime.patches import to_tokens
from framert.runtime.request import Request
from framert.runtime.tables import Layout
from framert.runtime.task import Task

if TYPE_CHECKING:
    from framert.runtime.components import Components
    from framert.runtime.job import Job


class UniVG:
    """One frame; a picture's latent and a mask lie beside it on channels; text tokens are part of the sequence."""

    name = "univg"

    def tasks(self, manifest: Manifest | None = None) -> Mapping[str, Task]:
        return TASKS if manifest is None else tasks_of(manifest)

    def compose(self, request: Request, manifest: Manifest) -> Composition:
        if request.task is not None:
            tasks = tasks_of(manifest)
            return plan(tasks[request.task], tasks, request)
        return compose(request, plain=not manifest.model.condition_channels)

    def at_size(self, composition: Composition, size: tuple[int, int]) -> Composition:
        assert isinstance(composition, Picture)
        return replace(composition, images=(draw_boxes(composition, size),)) if composition.boxes else composition

    def guide(self, request: Request, composition: Composition) -> Guided:
        """Return the branches of v = v(0,0) + a_V (v(V,0) - v(0,0)) + a_X (v(V,X) - v(V,0)), as the paper has it.

        The picture V is what lies on the channels; X is the prompt with its references.
        """
        assert isinstance(composition, Picture)
        text = check_scale("guidance", composition.guidance if request.guidance is None else request.guidance)
        settings = {"guidance": text}
        if not composition.images:
            if request.image_guidance is not None:
                raise ConfigError(
                    f"image_guidance is {request.image_guidance!r}, and this request shows no picture to be guided by; "
                    "leave it out"
                )
            branches = classifier_free(composition.prompt, request.negative_prompt, text)
            own = composition.prompt
            references = composition.references
            # the prompt's placeholders are filled; another prompt has none
            return Guided(
                tuple(replace(one, references=references) if one.prompt is own else one for one in branches), settings
            )
        given = request.image_guidance
        image = check_scale("image_guidance", composition.image_guidance if given is None else given)
        branches = dual(composition.prompt, request.negative_prompt, text, image)
        return Guided(branches, settings | {"image_guidance": image})

    def layout(self, manifest: Manifest) -> Layout:
        return Layout(blank=_blank(manifest), carries_text=True, centred_in=manifest.model.max_positions)

    def start(self, job: "Job", components: "Components", seconds: dict[str, float]) -> Start:
        """Return noise, and per token the picture's latents and the mask of what is to be painted."""
        composition = job.composition
        assert isinstance(composition, Picture)
        if not composition.images:
            return Start(job.noise())
        latents = components.encode(fit(composition.images[0], job.size), seconds)
        mask = painted(composition.painted, job.size, latents.shape[1:])
        shown = np.concatenate([latents, mask[None]])
        return Start(job.noise(), to_tokens(shown[None], job.patch))


def painted(where: bool | NDArray[np.bool_], size: tuple[int, int], shape: tuple[int, ...]) -> Floats:
    """Return the mask at the latents' (h, w): 1 where a latent pixel covers anything to be painted, else 0.

    Args:
        where: everywhere, nowhere, or (height, width) of the picture before it is fitted to ``size``.
    """
    if isinstance(where, bool):
        return np.full(shape, where, np.float32)
    grey = Image.fromarray(where.astype(np.uint8) * 255)
    # cropped and resized as the picture is: whatever has a share of the hole's grey is to be painted
    white = fit(grey.convert("RGB"), size)[..., 0] > -1
    blocks = white.reshape(shape[0], size[1] // shape[0], shape[1], size[0] // shape[1])
    return np.asarray(blocks.any(axis=(1, 3)), np.float32)


def _blank(manifest: Manifest) -> Floats | None:
    """Return what a token is shown where there is no picture: latents of zero, all to be painted."""
    model = manifest.model
    if not model.condition_channels:
        return None
    frame = np.zeros((1, model.condition_channels, model.patch, model.patch), np.float32)
    frame[:, -1] = 1.0
    blank: Floats = to_tokens(frame, model.patch)[0]
    return blank
