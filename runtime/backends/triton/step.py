"""One size of the step: its tables at fixed addresses, and the CUDA graph that was captured of it."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from framert.kernels.update.api import update
from framert.runtime.arrays import Array
from framert.runtime.backends.triton.captures import Captures
from framert.runtime.backends.triton.model import Arenas, Model, TokenTables
from framert.runtime.backends.triton.settings import Settings
from framert.runtime.tables import Tables

TABLES = tuple(item.name for item in fields(TokenTables) if item.name != "row")  # which comes with every call


@dataclass(frozen=True, slots=True)
class StepKey:
    """Sizes of a step's arrays. tokens and slots are buckets, sequences and frames capacities.

    cached: keys and values pass through the cache arenas, see ``Tables.kv_index``. words: bucket of the text tokens
    that are part of the call, None where they are not. shown: values of a row of conditions, 0 where there are none.
    """

    tokens: int
    slots: int
    sequences: int
    frames: int
    cached: bool
    words: int | None = None
    shown: int = 0


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
        key: the sizes. model: gives the velocity. state: the slots that it reads and writes.
        branches: of the guidance tables. captures: makes the graphs of a denoiser; None on the CPU.
    """

    def __init__(
        self,
        key: StepKey,
        model: Model,
        arenas: Arenas,
        state: SlotState,
        settings: Settings,
        branches: int,
        captures: Captures | None,
    ) -> None:
        self._model = model
        self._arenas = arenas
        self._settings = settings
        self._captures = captures
        self._graph: Any = None
        self._runs = 0
        self._holds: Tables | None = None
        self.state = state

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=settings.device)

        self.tables = TokenTables(
            source=zeros(key.tokens),
            position=zeros(key.tokens, 3),
            frame=zeros(key.tokens),
            row=zeros(key.frames),
            q_range=zeros(key.sequences, 2),
            kv_range=zeros(key.sequences, 2),
            text_range=zeros(key.sequences, 2),
            kv_index=zeros(key.tokens, dtype=torch.int64) if key.cached else None,
            # rows belong to slots, and the first to none
            conditions=zeros(1 + key.slots, key.shown, dtype=torch.float32) if key.shown else None,
            condition_source=zeros(key.tokens) if key.shown else None,
            text_source=None if key.words is None else zeros(key.words),
            text_frame=None if key.words is None else zeros(key.words),
        )
        self._guidance_index = zeros(key.slots, branches)
        self._guidance_weight = torch.zeros(key.slots, branches, device=settings.device)

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def load(self, tables: Tables) -> None:
        """Take a pack's tables; what it does not fill are empty sequences and slots without guidance."""
        if self._holds is tables:
            return
        pairs: list[tuple[Tensor, Array]] = [
            (self._guidance_index, tables.guidance_index),
            (self._guidance_weight, tables.guidance_weight),
        ]
        given = tables.arrays()
        for name in TABLES:
            target = getattr(self.tables, name)
            assert (target is None) == (name not in given), name
            if target is not None:
                pairs.append((target, given[name]))
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
        output = self._model.velocity(self._arenas, self.tables, state.latents)
        update(
            output, state.latents, state.history, self._guidance_index, self._guidance_weight, state.update,
            velocity=state.velocity, impl=settings.impl,
        )  # fmt: skip
