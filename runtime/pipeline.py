"""``framert.load`` and what it returns: one bundle on one backend, ready to run."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from framert.runtime import backends, velocity
from framert.runtime.arrays import Array, Floats
from framert.runtime.backends.base import Backend
from framert.runtime.backends.choice import choose, made_for
from framert.runtime.bundle import Bundle
from framert.runtime.cameras import Cameras
from framert.runtime.checkpoints import bundle_of, is_checkpoint
from framert.runtime.components import Components
from framert.runtime.config import EngineConfig
from framert.runtime.engine import Engine, check_callback
from framert.runtime.errors import ConfigError, ShapeError, TaskError
from framert.runtime.images import ImageSource
from framert.runtime.job import check_seed
from framert.runtime.manifest import PRECISION_WORDS, Manifest
from framert.runtime.request import Request, StepInfo
from framert.runtime.result import Result
from framert.runtime.ticket import Ticket

_log = logging.getLogger("framert")
OnStep = Callable[[StepInfo], None]


def load(
    bundle: str | os.PathLike[str],
    *,
    backend: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    impl: str | None = None,
    low_memory: bool = False,
    provider: str | None = None,
    check_files: bool = True,
) -> "Pipeline":
    """Open a bundle.

    Args:
        bundle: the folder that ``framert export`` wrote; or a checkpoint's folder, which is exported first, once, into
            ``$FRAMERT_CACHE`` or the user's cache (needs the extra "export").
        backend: "onnxruntime", "openvino" or "triton" (NVIDIA GPUs) for exported graphs, "tensorrt" for engines of
            ``framert build``. A named backend is used or refused, never replaced by another. None takes what the
            bundle was made for: "tensorrt" for engines, else "onnxruntime". "auto" does too, but takes "openvino" in
            bfloat16 for graphs where this CPU has it and the bundle was found to keep its picture so.
            ``Pipeline.backend_reason`` says why.
        threads: threads inside an operator, of the backends for CPUs; None is one per physical core.
        precision: what the backend computes in where it has a choice ("openvino": "fp32" or "bf16"; "triton": "bf16",
            "fp16", "fp32", "int8" or "fp8"); None is its own.
        impl: of backend "triton" alone: "auto", "triton" or "reference" (plain torch on the CPU, to check with).
        low_memory: load and unload graph by graph, so that never two are in memory. Every request then loads each
            graph again, and the CPU packs no weights ahead; made for a model that otherwise would not fit.
        provider: of backend "onnxruntime" alone: "cpu" (None is that), or "cuda" or "tensorrt", which need the extra
            "gpu". A provider that cannot run is refused, never replaced.
        check_files: compare every file with its sha256 in the manifest.
    Raises: BundleError if the bundle is missing or damaged; BackendError if the backend cannot run it here;
        ConfigError for an option that the backend does not have.
    """
    if is_checkpoint(bundle):
        opened = Bundle.open(bundle_of(bundle), check_files=False)  # it compared them
    else:
        opened = Bundle.open(bundle, check_files=check_files)
    reason = "named by the caller"
    if backend is None:
        backend, reason = made_for(opened)
    elif backend == "auto":
        if precision is not None:
            raise ConfigError(f"precision is {precision!r} beside backend 'auto', which chooses it; name the backend")
        if provider is not None:
            raise ConfigError(f"provider is {provider!r} beside backend 'auto', which takes CPUs; name the backend")
        choice = choose(opened)
        backend, precision, reason = choice.backend, choice.precision, choice.reason
        _log.info("backend %s%s: %s", backend, f" in {precision}" if precision else "", reason)
    made = backends.create(
        backend, opened, threads=threads, precision=precision, impl=impl, low_memory=low_memory, provider=provider
    )
    return Pipeline(opened, made, backend_reason=reason)


class Pipeline:
    """Runs tasks of one bundle. Usable from several threads: their requests share denoiser calls."""

    def __init__(self, bundle: Bundle, backend: Backend, *, backend_reason: str = "named by the caller") -> None:
        self.backend_reason = backend_reason  # why this backend, in words
        self._bundle = bundle
        self._backend = backend
        self._components = Components(bundle, backend)
        self._engine = self.engine()

    @property
    def manifest(self) -> Manifest:
        return self._bundle.manifest

    @property
    def backend_name(self) -> str:
        """The name of the backend that runs the graphs, as ``load`` takes it."""
        return self._backend.name

    @property
    def side(self) -> str:
        """Backend and precision, such as "onnxruntime-int8", or "openvino-int8+bf16" for a quantized bundle whose other
        arithmetic is in bfloat16: what benchmarks call this pipeline.
        """
        exported = PRECISION_WORDS.get(self.manifest.graphs["denoiser"].precision, "mixed")
        computed = getattr(self._backend, "precision", None)  # None: what was exported
        words = [word for word in dict.fromkeys((exported, computed)) if word not in (None, "fp32")]
        return f"{self._backend.name}-{'+'.join(words) or 'fp32'}"

    def engine(self, *, max_tokens: int | None = None) -> Engine:
        """Return a new engine on this bundle, for many requests at once; weights are shared.

        Args:
            max_tokens: model tokens per denoiser call; larger requests are refused. None packs up to 8192.
        """
        return Engine(self._bundle, self._backend, self._components, EngineConfig(max_tokens=max_tokens))

    def warm_up(self, tokens: Iterable[int]) -> None:
        """Make calls of so many model tokens ready before the first request, see ``Engine.warm_up``."""
        self._engine.warm_up(tokens)

    def run(
        self,
        task: str,
        *,
        images: Sequence[ImageSource] = (),
        prompt: str | Sequence[str] = "",
        colors: Mapping[str, str] | None = None,
        hole: ImageSource | None = None,
        captions: Sequence[str] | None = None,
        item: str | None = None,
        cameras: Cameras | None = None,
        boxes: Mapping[str, Sequence[float]] | None = None,
        extend: Sequence[int] | None = None,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        noise: Floats | None = None,
        solver: str = "euler",
        reuse: int = 1,
        count: int = 1,
        progress: bool = False,
        on_step: OnStep | None = None,
    ) -> Any:
        """Run a task. None means the task's own value (``framert tasks`` lists them).

        Args:
            task: a name of the task table.
            images: pictures the task starts from: paths, PIL pictures or arrays.
            prompt: a caption or instruction; a list makes one result per prompt.
            colors, hole, captions, item, cameras, boxes, extend: what some tasks take besides, see the task table.
            negative_prompt: what guidance moves away from.
            steps: intervals of the schedule. guidance: by the prompt; 1 or less is none.
            image_guidance: by the given picture, where the bundle's family has it; 1 or less is none.
            size: (width, height) of the result in pixels.
            seed: of the noise; result i of several uses seed + i, whatever else runs beside it.
            noise: (frames, channels, h/8, w/8) to use instead of the seed's, for the whole sequence.
            solver: "euler", "heun" or "dpmpp_2m".
            reuse: run condition frames only in every so many-th call, and let the calls between use their keys and
                values of then: faster, a little off. 1 is exact. Backend "triton" alone has more.
            count: results to make, of one prompt.
            progress: show a bar on stderr. on_step: called after every interval of the schedule.
        Returns: a Result; a list of them for a list of prompts or ``count`` above 1.
        Raises: TaskError, ConfigError, ImageError or ShapeError for arguments that do not fit; BackendError.
        """
        request = Request(
            task=task,
            images=images,
            colors=colors,
            hole=hole,
            captions=captions,
            item=item,
            cameras=cameras,
            boxes=boxes,
            extend=extend,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            size=size,
            seed=seed,
            noise=noise,
            solver=solver,
            reuse=reuse,
            on_step=on_step,
        )
        return self._run(request, prompt, count, progress)

    def generate(
        self,
        *,
        prompt: str | Sequence[str],
        images: Sequence[ImageSource] = (),
        mask: Sequence[int] = (1,),
        cameras: Cameras | None = None,
        multiview: bool = False,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        noise: Floats | None = None,
        solver: str = "euler",
        reuse: int = 1,
        count: int = 1,
        progress: bool = False,
        on_step: OnStep | None = None,
    ) -> Any:
        """Run any composition of frames under a raw prompt, task tokens included.

        Args:
            mask: one entry per frame, 1 to generate it and 0 to give it. With ``cameras`` or ``multiview`` frames
                alternate picture, rays; ``images`` fill the pictures with mask 0 in order. A family that shows pictures
                beside the one to make takes [1] alone, and at most one of ``images``.
            The others are those of ``run``.
        Returns, raises: as ``run``.
        """
        request = Request(
            images=images,
            mask=mask,
            cameras=cameras,
            multiview=multiview,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            size=size,
            seed=seed,
            noise=noise,
            solver=solver,
            reuse=reuse,
            on_step=on_step,
        )
        return self._run(request, prompt, count, progress)

    def velocity(
        self,
        samples: Floats,
        timesteps: Floats,
        text: Floats,
        text_mask: Array,
        *,
        pooled: Floats | None = None,
        conditions: Floats | None = None,
    ) -> Floats:
        """Return the transformer's raw output: one denoiser call, for verification.

        Args:
            samples: (batch, frames, channels, h, w) latents.
            timesteps: (frames,) noise levels in 0..1000.
            text: (batch, length, text_width) hidden states. text_mask: (batch, length), 1 where text is.
            pooled: (batch, pooled_width), where the model takes it; None is zeros.
            conditions: (batch, condition_channels, h, w), latents of a picture and the mask, where the model has
                channels for them; None shows no picture.
        Returns: (batch, frames, channels, h, w) float32.
        Raises: ShapeError if shapes disagree.
        """
        return velocity.velocity(
            self._backend,
            self._components,
            self.manifest,
            _floats("samples", samples),
            _floats("timesteps", timesteps),
            _floats("text", text),
            np.asarray(text_mask),
            None if pooled is None else _floats("pooled", pooled),
            None if conditions is None else _floats("conditions", conditions),
        )

    def _run(self, request: Request, prompt: str | Sequence[str], count: int, progress: bool) -> Any:
        several = not isinstance(prompt, str) or count != 1
        requests = _expand(request, prompt, count)
        with _Progress(requests, progress) as shown:
            tickets: list[Ticket] = []
            try:
                tickets.extend(self._engine.submit(item) for item in shown)
                results: list[Result] = [ticket.result() for ticket in tickets]
            except BaseException:  # an interrupt too: nothing of this call may stay in the engine
                for ticket in tickets:
                    ticket.cancel()
                self._engine.reap()
                raise
        return results if several else results[0]


def _floats(name: str, values: Floats) -> Floats:
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} is a {type(values).__name__} that is no array of numbers; give float32") from error


def _expand(request: Request, prompt: str | Sequence[str], count: int) -> list[Request]:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"count is {count!r}; give a whole number of at least 1")
    check_seed(request.seed)
    if isinstance(prompt, str):
        prompts = [prompt] * count
    elif not isinstance(prompt, list | tuple):
        raise TaskError(f"the prompt is a {type(prompt).__name__}; give a string, or a list of strings")
    elif count != 1:
        raise ConfigError(f"count is {count} beside a list of {len(prompt)} prompts; give one of the two")
    else:
        prompts = list(prompt)
    if request.noise is not None and len(prompts) > 1:
        raise ConfigError(f"noise was given for {len(prompts)} results, which would share it; run them one by one")
    if not prompts:
        raise ConfigError("the list of prompts is empty; give at least one prompt")
    return [replace(request, prompt=text, seed=request.seed + index) for index, text in enumerate(prompts)]


class _Progress:
    """A bar over the intervals of all requests, fed by their ``on_step``."""

    def __init__(self, requests: list[Request], shown: bool) -> None:
        self._requests = requests
        self._bar = tqdm(desc="framert", unit="step", disable=not shown, total=0)

    def __enter__(self) -> list[Request]:
        return [replace(item, on_step=self._wrap(item.on_step)) for item in self._requests]

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _wrap(self, inner: OnStep | None) -> OnStep:
        check_callback(inner)

        def on_step(info: StepInfo) -> None:
            self._bar.total = info.steps * len(self._requests)
            self._bar.update()
            if inner is not None:
                inner(info)

        return on_step
