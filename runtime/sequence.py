"""A job under way: its latents, its place in the solver, and its rows of the per-step tables."""

from dataclasses import dataclass, field

import numpy as np

from framert.runtime.arrays import Floats, Ints
from framert.runtime.components import Components
from framert.runtime.job import Job
from framert.runtime.patches import to_frames, to_tokens
from framert.runtime.solvers.evaluation import KEEP
from framert.runtime.store import Conditioning, ConditioningStore
from framert.runtime.tables import BranchRows


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request between denoiser calls.

    latents, history: (slots, token_width). conditions: (slots, condition width), see families.base.Start. rows: (calls,
    branches * frames) int32, the modulation row of each packed frame at each call. updates: (calls, frames, 6). call:
    the next evaluation. seconds: wall time per graph.
    """

    job: Job
    branches: tuple[BranchRows, ...]
    held: tuple[Conditioning, ...]
    rows: Ints
    updates: Floats
    latents: Floats
    history: Floats
    conditions: Floats | None
    seconds: dict[str, float]
    call: int = field(default=0)

    @property
    def frames(self) -> int:
        return self.job.frames

    @property
    def height(self) -> int:
        return self.job.height

    @property
    def width(self) -> int:
        return self.job.width

    @property
    def generated_frames(self) -> tuple[int, ...]:
        return tuple(number for number, generate in enumerate(self.job.composition.mask) if generate)

    @property
    def skips(self) -> bool:
        """Whether the next call runs the generated frames alone, with the condition frames' keys of an earlier call."""
        return self.call % self.job.reuse != 0

    @property
    def done(self) -> bool:
        return self.call == len(self.job.evaluations)

    def update(self) -> Floats:
        """Return the solver rows of this call, (slots, 6)."""
        rows: Floats = np.repeat(self.updates[self.call], self.height * self.width, axis=0)
        return rows

    def generated(self, tokens: Floats) -> Floats:
        """Return the generated frames, (n, channels, h, w), of this sequence's (slots, token_width) tokens."""
        frames = to_frames(tokens, self.job.patch, self.job.shape)
        chosen: Floats = frames[np.asarray(self.job.composition.mask, bool)]
        return chosen


def start(job: Job, components: Components, store: ConditioningStore) -> Sequence:
    """Encode a job's pictures and prompts and lay out its tables.

    Raises: what the backend raises; no arena rows are held then.
    """
    seconds: dict[str, float] = {}
    first = job.family.start(job, components, seconds)
    # all texts before the first conditioner call, so that neither graph need be loaded twice
    texts = [components.read(branch.prompt, seconds, branch.references) for branch in job.branches]
    levels = noise_levels(job)
    held: list[Conditioning] = []
    try:
        cache = job.tokens // len(job.branches) if job.reuse > 1 else 0
        held.extend(store.acquire(text, levels, seconds, cache=cache) for text in texts)
    except BaseException:
        for conditioning in held:
            store.release(conditioning)
        raise
    branches = tuple(
        BranchRows(
            own.text.begin,
            own.text.length,
            own.modulation.begin,
            branch.weight,
            None if own.cache is None else own.cache.begin,
            branch.picture,
        )
        for own, branch in zip(held, job.branches, strict=True)
    )
    tokens = to_tokens(first.latents, job.patch)
    return Sequence(
        job=job,
        branches=branches,
        held=tuple(held),
        rows=_rows(job, levels, branches),
        updates=_updates(job),
        latents=tokens,
        history=np.zeros_like(tokens),
        conditions=first.conditions,
        seconds=seconds,
    )


def noise_levels(job: Job) -> list[float]:
    """Return the distinct noise levels (0..1000) of a job's evaluations and condition frames, highest first."""
    levels = {job.schedule.scale * call.sigma for call in job.evaluations} | {job.schedule.condition_level}
    return sorted(levels, reverse=True)


def _rows(job: Job, levels: list[float], branches: tuple[BranchRows, ...]) -> Ints:
    index = {level: number for number, level in enumerate(levels)}
    condition = index[job.schedule.condition_level]
    local = [
        [index[job.schedule.scale * call.sigma] if generate else condition for generate in job.composition.mask]
        for call in job.evaluations
    ]
    own = np.asarray(local, np.int32)
    return np.concatenate([own + np.int32(branch.modulation_begin) for branch in branches], axis=1)


def _updates(job: Job) -> Floats:
    rows = [[call.row if generate else KEEP for generate in job.composition.mask] for call in job.evaluations]
    return np.asarray(rows, np.float32)
