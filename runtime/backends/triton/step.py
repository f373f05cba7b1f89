"""One size of the step: its tables at fixed addresses, and the CUDA graph that was captured of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framert.kernels.update.api import update
from framert.runtime.arrays import Array
from framert.runtime.backends.triton.captures import Captures
from framert.runtime.backends.triton.forward import Arenas, TokenTables, velocity_of_tokens
from framert.runtime.backends.triton.settings import Settings
from framert.runtime.backends.triton.weights import StepWeights
from framert.runtime.tables import Tables


@dataclass(frozen=True, slots=True)
class StepKey:
    """Sizes of a step's arrays. tokens and slots are buckets, sequences and frames capacities.

    cached: keys and values pass through the cache arenas, see ``Tables.kv_index``.
    """

    tokens: int
    slots: int
    sequences: int
    frames: int
    cached: bool


class SlotState:
    """Latents, history and velocity of a pack, (slots, token_width) fp32, and its solver rows, (slots, 6)."""

    def __init__(self, slots: int, width: int, device: torch.device) -> None:
        self.latents, self.history, self.velocity = torch.zeros(3, slots, width, device=device).unbind()
        self.update = torch.zeros(slots, 6, device=device)

    def take(self, latents: Array, history: Array) -> None:
        """Start from (n, token_width) values of the first n slots."""
        for target, values in ((self.latents, latents), (self.history, history)):
            target.zero_()
            target[: len(values)].copy_(torch.from_numpy(values))
        self.velocity.zero_()
        self.update.zero_()


class Step:
    """Runs packs of one key: eagerly the first time, on CUDA captured in the second and replayed from then on.

    Args:
        key: the sizes. state: the slots that it reads and writes. branches: of the guidance tables.
        captures: makes the graphs of a denoiser; None on the CPU.
    """

    def __init__(
        self,
        key: StepKey,
        weights: StepWeights,
        arenas: Arenas,
        state: SlotState,
        settings: Settings,
        branches: int,
        captures: Captures | None,
    ) -> None:
        self._weights = weights
        self._arenas = arenas
        self._settings = settings
        self._captures = captures
        self._graph: Any = None
        self._runs = 0
        self._holds: Tables | None = None
        self.state = state

        def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=settings.device)

        self.tables = TokenTables(
            source=ints(key.tokens),
            position=ints(key.tokens, 3),
            frame=ints(key.tokens),
            row=ints(key.frames),
            q_range=ints(key.sequences, 2),
            kv_range=ints(key.sequences, 2),
            text_range=ints(key.sequences, 2),
            kv_index=ints(key.tokens, dtype=torch.int64) if key.cached else None,
        )
        self._guidance_index = ints(key.slots, branches)
        self._guidance_weight = torch.zeros(key.slots, branches, device=settings.device)

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def load(self, tables: Tables) -> None:
        """Take a pack's tables; what it does not fill are empty sequences and slots without guidance."""
        if self._holds is tables:
            return
        own = self.tables
        pairs: list[tuple[Tensor, Array]] = [
            (own.source, tables.source),
            (own.position, tables.position),
            (own.frame, tables.frame),
            (own.q_range, tables.q_range),
            (own.kv_range, tables.kv_range),
            (own.text_range, tables.text_range),
            (self._guidance_index, tables.guidance_index),
            (self._guidance_weight, tables.guidance_weight),
        ]
        if own.kv_index is not None and tables.kv_index is not None:
            pairs.append((own.kv_index, tables.kv_index))
        for target, values in pairs:
            target[: len(values)].copy_(torch.from_numpy(values))
            target[len(values) :].zero_()
        self._holds = tables

    def run(self) -> None:
        """Compute one call; row and update are already in place."""
        self._runs += 1
        if self._captures is None or self._runs == 1:
            self._compute()
            return
        if self._graph is None:
            self._graph = self._captures.capture(self._compute)
        self._graph.replay()

    def _compute(self) -> None:
        state, settings = self.state, self._settings
        output = velocity_of_tokens(
            self._weights, self._arenas, self.tables, state.latents, settings.residual, settings.impl
        )
        update(
            output, state.latents, state.history, self._guidance_index, self._guidance_weight, state.update,
            velocity=state.velocity, impl=settings.impl,
        )  # fmt: skip
