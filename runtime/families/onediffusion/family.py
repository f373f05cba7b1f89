"""OneDiffusion as the runtime sees it. Source: arXiv:2411.16318 and its public code."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from framert.runtime.arrays import Floats
from framert.runtime.cameras import Cameras
from framert.runtime.composition import Composition
from framert.runtime.errors import ConfigError
from framert.runtime.families.base import Guided, Start
from framert.runtime.families.onediffusion.frames import compose
from framert.runtime.families.onediffusion.plan import plan
from framert.runtime.families.onediffusion.task_table import TASKS
from framert.runtime.guidance import check_scale, classifier_free
from framert.runtime.images import fit
from framert.runtime.manifest import Manifest
from framert.runtime.request import Request
from framert.runtime.tables import Layout
from framert.runtime.task import Task

if TYPE_CHECKING:
    from framert.runtime.components import Components
    from framert.runtime.job import Job


class OneDiffusion:
    """A picture and its conditions are frames of one sequence; text enters as keys and values of every layer."""

    name = "onediffusion"

    def tasks(self, manifest: Manifest | None = None) -> Mapping[str, Task]:
        return TASKS

    def compose(self, request: Request, manifest: Manifest) -> Composition:
        if request.task is not None:
            return plan(TASKS[request.task], request)
        return compose(
            prompt=request.prompt,
            images=request.images,
            mask=request.mask,
            cameras=request.cameras,
            multiview=request.multiview,
        )

    def at_size(self, composition: Composition, size: tuple[int, int]) -> Composition:
        return composition

    def guide(self, request: Request, composition: Composition) -> Guided:
        if request.image_guidance is not None:
            raise ConfigError(
                f"image_guidance is {request.image_guidance!r}, and this bundle is of {self.name}, which is guided by "
                "the prompt alone; leave it out"
            )
        scale = check_scale("guidance", composition.guidance if request.guidance is None else request.guidance)
        return Guided(classifier_free(composition.prompt, request.negative_prompt, scale), {"guidance": scale})

    def layout(self, manifest: Manifest) -> Layout:
        return Layout()

    def start(self, job: "Job", components: "Components", seconds: dict[str, float]) -> Start:
        """Return noise in the frames to generate and clean latents in the condition frames."""
        latents = job.noise().copy()
        composition = job.composition
        pictures = iter(composition.images)
        rays = _condition_rays(composition.cameras, job.shape[2])
        for number, (generate, kind) in enumerate(zip(composition.mask, composition.kinds, strict=True)):
            if generate:
                continue
            if kind == "rays":
                latents[number] = rays[number // 2]  # frames alternate picture, rays
            else:
                latents[number] = components.encode(fit(next(pictures), job.size), seconds)
        return Start(latents)


def _condition_rays(cameras: Cameras | None, side: int) -> Floats:
    return np.zeros((0, 16, side, side), np.float32) if cameras is None else cameras.relative().rays(side)
