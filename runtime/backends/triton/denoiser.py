"""The step on the device: arenas, the state of a pack, and which captured graph runs it."""

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from framert.runtime.arrays import Floats, Ints
from framert.runtime.backends.buckets import capacity, text_bucket, token_bucket
from framert.runtime.backends.triton.captures import Captures
from framert.runtime.backends.triton.failures import as_backend_error
from framert.runtime.backends.triton.model import Arenas, Model
from framert.runtime.backends.triton.settings import Settings
from framert.runtime.backends.triton.staging import Staging
from framert.runtime.backends.triton.step import SlotState, Step, StepKey
from framert.runtime.tables import Tables

LEAST_SEQUENCES = 16  # of a step; packs of more get four or sixteen times as many. Each empty one costs some programs
LEAST_FRAMES = 256
MAX_STEPS = 24  # sizes kept; each holds its tables, some hundred KB, and its graph. Activations are shared


class TritonDenoiser:
    """Runs packs in steps of fixed sizes, see ``StepKey``; the least recently used ones are forgotten.

    Args:
        model: the family's step, shared by all denoisers of a backend. token_width: values of a latent token.
        guidance_branches: width of the guidance tables. settings: device, dtypes and implementation.
    """

    def __init__(self, model: Model, token_width: int, guidance_branches: int, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self._branches = guidance_branches
        self._width = token_width
        self._arenas = model.empty()
        self.cache_rows = 0
        self._steps: OrderedDict[StepKey, Step] = OrderedDict()
        self._states: dict[int, SlotState] = {}
        self._staging = Staging(settings.device)
        self._captures = Captures(settings.device) if settings.device.type == "cuda" else None
        self._tables: Tables | None = None
        self._state: SlotState | None = None

    def reserve(self, *, text: int, rows: int) -> None:
        old = self._arenas
        with as_backend_error("making room for prompts"):
            self._take(
                replace(
                    old,
                    text=tuple(_grown(part, text, self._model.text_axis) for part in old.text),
                    modulation=_grown(old.modulation, rows, 0),
                )
            )

    def reserve_cache(self, rows: int) -> None:
        with as_backend_error("making room for reused keys and values"):
            self._grow_cache(rows)
        self.cache_rows = max(self.cache_rows, rows)

    def write_text(self, begin: int, *parts: Tensor) -> None:
        with as_backend_error("writing a prompt"):
            for arena, part in zip(self._arenas.text, parts, strict=True):
                axis = self._model.text_axis
                arena.narrow(axis, begin, part.shape[axis]).copy_(part)

    def write_modulation(self, begin: int, modulation: Tensor) -> None:
        with as_backend_error("writing a prompt"):
            self._arenas.modulation[begin : begin + len(modulation)] = modulation

    def padded(self, tokens: int) -> int:
        return token_bucket(tokens)

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        # tables of a call that skips tokens may have fewer of them than there are slots
        slots = max(token_bucket(tables.slots), len(tables.source))
        with as_backend_error("binding a pack"):
            if slots not in self._states:
                self._states[slots] = SlotState(slots, self._width, self._settings.device)
            self._states[slots].take(latents, history)
        self._state = self._states[slots]
        self._tables = tables

    def switch(self, tables: Tables) -> None:
        self._tables = tables

    def step(self, row: Ints, update: Floats) -> None:
        assert self._state is not None
        with as_backend_error("the denoiser"), self._on_device():
            step = self._current()
            self._staging.send((step.tables.row, row), (self._state.update, update))
            step.run()

    def state(self) -> tuple[Floats, Floats]:
        assert self._state is not None
        return self._read(self._state.latents), self._read(self._state.history)

    def velocity(self) -> Floats:
        assert self._state is not None
        return self._read(self._state.velocity)

    def captured(self) -> list[StepKey]:
        """Return the sizes that are captured, the least recently used first."""
        return [key for key, step in self._steps.items() if step.captured]

    def _on_device(self) -> AbstractContextManager[object]:
        """Make the device the current one, as each thread has its own: kernels, streams and graphs go by it."""
        device = self._settings.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _read(self, values: Tensor) -> Floats:
        assert self._tables is not None
        with as_backend_error("the denoiser"):  # where a failure on the device comes to light
            host: Floats = values[: self._tables.slots].cpu().numpy()
        return host.copy() if self._settings.device.type == "cpu" else host

    def _current(self) -> Step:
        """Return the step for the current tables, with them in place."""
        tables, state = self._tables, self._state
        assert tables is not None
        assert state is not None
        key = StepKey(
            tokens=len(tables.source),
            slots=len(state.latents),
            sequences=capacity(len(tables.q_range), LEAST_SEQUENCES),
            frames=capacity(tables.frames, LEAST_FRAMES),
            cached=tables.kv_index is not None,
            words=None if tables.text_source is None else text_bucket(len(tables.text_source)),
            shown=0 if tables.conditions is None else tables.conditions.shape[1],
        )
        if key.cached:
            self._grow_cache(self.cache_rows + key.tokens)  # the tail serves requests that do not reuse
        if key not in self._steps:
            self._steps[key] = Step(
                key, self._model, self._arenas, state, self._settings, self._branches, self._captures
            )
        self._steps.move_to_end(key)
        if len(self._steps) > MAX_STEPS:
            self._steps.popitem(last=False)
            used = {len(step.state.latents) for step in self._steps.values()}
            self._states = {slots: kept for slots, kept in self._states.items() if slots in used}
        step = self._steps[key]
        step.load(tables)
        return step

    def _grow_cache(self, rows: int) -> None:
        old = self._arenas
        self._take(replace(old, cache=tuple(_grown(part, rows, self._model.text_axis) for part in old.cache)))

    def _take(self, arenas: Arenas) -> None:
        """Use these arenas. Steps hold the addresses of those they were made with."""
        now, before = ((*each.text, each.modulation, *each.cache) for each in (arenas, self._arenas))
        if any(one is not other for one, other in zip(now, before, strict=True)):
            self._steps.clear()
        self._arenas = arenas


def _grown(store: Tensor, length: int, axis: int) -> Tensor:
    """Return ``store`` with at least ``length`` entries along ``axis``, its contents kept."""
    have = store.shape[axis]
    if have >= length:
        return store
    shape = list(store.shape)
    shape[axis] = length
    larger = store.new_zeros(shape)
    larger.narrow(axis, 0, have).copy_(store)
    return larger
