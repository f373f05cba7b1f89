"""A request made definite: every default chosen and every argument checked, before any graph runs."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from framert.runtime import guidance, solvers
from framert.runtime.arrays import Floats
from framert.runtime.composition import Composition
from framert.runtime.errors import ConfigError, ShapeError, TaskError
from framert.runtime.families import Family, find_family, find_task
from framert.runtime.images import aspect_size, check_size
from framert.runtime.manifest import Manifest, ModelSpec
from framert.runtime.request import Request
from framert.runtime.schedule import Schedule
from framert.runtime.solvers.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What the engine runs for one request.

    size: (width, height) in pixels. shape: latents of the whole sequence, (frames, channels, h, w).
    branches: the guidance branches, each with its prompt. reuse: condition frames run in every so many-th call.
    settings: everything but the pictures and a given noise that is needed to repeat the request, see Result.
    """

    request: Request
    family: Family
    composition: Composition
    size: tuple[int, int]
    shape: tuple[int, int, int, int]
    patch: int
    schedule: Schedule
    evaluations: tuple[Evaluation, ...]
    branches: tuple[guidance.Branch, ...]
    reuse: int
    settings: dict[str, Any]

    @property
    def frames(self) -> int:
        return self.shape[0]

    @property
    def height(self) -> int:
        """Rows of tokens per frame."""
        return self.shape[2] // self.patch

    @property
    def width(self) -> int:
        """Columns of tokens per frame."""
        return self.shape[3] // self.patch

    @property
    def tokens(self) -> int:
        """Model tokens of one call: every guidance branch runs every frame."""
        return len(self.branches) * self.frames * self.height * self.width

    def noise(self) -> Floats:
        """Return the (frames, channels, h, w) start of the solver: the given noise, or the seed's."""
        if self.request.noise is not None:
            return np.asarray(self.request.noise, np.float32).reshape(self.shape)
        return np.random.default_rng(self.request.seed).standard_normal(self.shape, np.float32)


def prepare(request: Request, manifest: Manifest) -> Job:
    """Check a request against a bundle and fill in the task's own values.

    Raises: TaskError, ConfigError, ImageError or ShapeError, each naming the argument that does not fit.
    """
    family = find_family(manifest.family)
    composition = _compose(request, family, manifest)
    model = manifest.model
    frames = len(composition.mask)
    if frames > model.max_frames:
        raise TaskError(f"{frames} frames were given; this bundle takes at most {model.max_frames}")
    size = _size(request, composition, manifest)
    composition = family.at_size(composition, size)
    shape = (frames, model.latent_channels, size[1] // model.vae_factor, size[0] // model.vae_factor)
    steps = composition.steps if request.steps is None else request.steps
    target_tokens = sum(composition.mask) * (shape[2] // model.patch) * (shape[3] // model.patch)
    schedule = Schedule.build(manifest.schedule, steps, target_tokens)
    solver = solvers.find(request.solver)
    guided = family.guide(request, composition)
    check_seed(request.seed)
    _check_noise(request.noise, shape)
    _check_reuse(request.reuse, composition)
    return Job(
        request=request,
        family=family,
        composition=composition,
        size=size,
        shape=shape,
        patch=model.patch,
        schedule=schedule,
        evaluations=tuple(solver(schedule.sigmas.tolist())),
        branches=guided.branches,
        reuse=request.reuse,
        settings={
            **_frame_settings(request, composition),
            "negative_prompt": request.negative_prompt,
            "steps": schedule.steps,
            **guided.settings,
            "solver": request.solver,
            **({} if request.reuse == 1 else {"reuse": request.reuse}),
            "size": list(size),
            "seed": int(request.seed),
            **({} if request.noise is None else {"noise": "given"}),
            "full_prompt": composition.prompt,
        },
    )


def _frame_settings(request: Request, composition: Composition) -> dict[str, Any]:
    """What decides the frames and the prompt, as the caller gave it: arguments of run(), or of generate()."""
    given: dict[str, Any] = {"prompt": request.prompt}
    if request.task is None:
        given |= {"mask": list(composition.mask), "multiview": composition.multiview}
    else:
        given = {"task": request.task} | given
    if request.colors:
        given["colors"] = {thing: str(color) for thing, color in request.colors.items()}
    if request.captions:
        given["captions"] = list(request.captions)
    if request.item:
        given["item"] = request.item
    if request.boxes:
        given["boxes"] = {thing: [float(edge) for edge in box] for thing, box in request.boxes.items()}
    if request.extend:
        given["extend"] = [int(pixels) for pixels in request.extend]
    if composition.cameras is not None:
        given["cameras"] = json.loads(composition.cameras.to_json())["cameras"]
    return given


def _compose(request: Request, family: Family, manifest: Manifest) -> Composition:
    if not isinstance(request.negative_prompt, str):
        raise TaskError(f"negative_prompt is {request.negative_prompt!r}; give a string")
    if request.task is not None:
        find_task(request.task, family.name, manifest)
        if request.mask is not None or request.multiview:
            raise TaskError(f"task {request.task!r} decides its own frames; use generate() to give mask or multiview")
    return family.compose(request, manifest)


def _size(request: Request, composition: Composition, manifest: Manifest) -> tuple[int, int]:
    model = manifest.model
    if request.size is not None:
        size = check_size(request.size, model.multiple, model.max_side)
    elif composition.size_rule == "aspect" and (first := composition.first) is not None:
        size = _within(aspect_size(first.width, first.height, manifest.native_side, model.multiple), model)
    else:
        size = (manifest.native_side, manifest.native_side)
    if composition.size_rule == "square" and size[0] != size[1]:
        raise TaskError(f"size is {size[0]}x{size[1]}; multiview and camera tasks need a square one")
    return size


def _within(size: tuple[int, int], model: ModelSpec) -> tuple[int, int]:
    return min(size[0], model.max_side), min(size[1], model.max_side)


def check_seed(seed: int) -> None:
    """Raises: ConfigError if ``seed`` is not a whole number that NumPy's generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed!r}; give a whole number from 0 to 2^63 - 1")


def _check_reuse(reuse: int, composition: Composition) -> None:
    if isinstance(reuse, bool) or not isinstance(reuse, int) or reuse < 1:
        raise ConfigError(f"reuse is {reuse!r}; give a whole number of at least 1 (1 runs every frame in every call)")
    if reuse > 1 and all(composition.mask):
        raise ConfigError(f"reuse is {reuse}, but no frame of this request is given, so there is nothing to reuse")


def _check_noise(noise: Floats | None, shape: tuple[int, int, int, int]) -> None:
    if noise is None:
        return
    try:
        given = np.asarray(noise)
    except ValueError as error:  # lists of different lengths
        raise ShapeError(f"noise is not an array; this request needs one of shape {shape}") from error
    if given.shape != shape and not (shape[0] == 1 and given.shape == shape[1:]):
        raise ShapeError(f"noise has shape {given.shape}; this request needs {shape} (frames, channels, height, width)")
    # float64 values beyond float32 are as infinite as infinity; NaN compares false
    if given.dtype.kind != "f" or not (np.abs(given) <= np.finfo(np.float32).max).all():
        raise ShapeError("noise must be floating point without NaN or infinity; check where it was made")
