"""The step on the device: arenas, the state of a pack, and which captured call runs it."""

from collections import OrderedDict
from typing import Any, Protocol

from framert.runtime.arrays import Floats, Ints
from framert.runtime.backends.base import text_arenas
from framert.runtime.backends.tensorrt.arenas import MODULATION, Arenas
from framert.runtime.backends.tensorrt.device import Device
from framert.runtime.backends.tensorrt.engine import Call
from framert.runtime.backends.tensorrt.shapes import CallSizes, StepKey
from framert.runtime.backends.tensorrt.step import SlotState, Step
from framert.runtime.manifest import Manifest
from framert.runtime.tables import Tables

MAX_STEPS = 12  # sizes kept; each holds two contexts and their graphs. The memory they compute in is shared


class Calls(Protocol):
    """Where a denoiser gets calls of its engine from."""

    def calls(self, graph: str, count: int) -> list[Call]:
        """Return fresh calls of a graph's engine; loads it first where it is not loaded."""


class TensorRtDenoiser:
    """Runs packs in steps of fixed sizes, see ``StepKey``; the least recently used ones are forgotten.

    Args:
        engines: of the backend, shared by all its denoisers.
    """

    def __init__(self, engines: Calls, device: Device, manifest: Manifest, sizes: CallSizes, arenas: Arenas) -> None:
        self._engines, self._device = engines, device
        self._graph = manifest.graphs["denoiser"]
        self._text = tuple(text_arenas(manifest))
        self._sizes = sizes
        self._arenas = arenas
        self._steps: OrderedDict[StepKey, Step] = OrderedDict()
        self._states: dict[int, SlotState] = {}
        self._tables: Tables | None = None
        self._key: StepKey | None = None

    def reserve(self, *, text: int, rows: int) -> None:
        with self._device.use():
            if self._arenas.reserve(text=text, rows=rows):
                self._forget_steps()  # they hold the addresses of what was there before

    def write_text(self, begin: int, *parts: Any) -> None:
        with self._device.use():
            for name, part in zip(self._text, parts, strict=True):
                self._arenas.write(name, begin, part)

    def write_modulation(self, begin: int, modulation: Any) -> None:
        with self._device.use():
            self._arenas.write(MODULATION, begin, modulation)

    def padded(self, tokens: int) -> int:
        return self._sizes.padded(tokens)

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        key = self._sizes.key(tables)
        with self._device.use() as device:
            if key.slots not in self._states:
                self._states[key.slots] = SlotState(device.driver, device.stream, key.slots, self._graph)
            self._states[key.slots].take(latents, history)
        self._key, self._tables = key, tables

    def step(self, row: Ints, update: Floats) -> None:
        with self._device.use() as device:
            step = self._current()
            device.staging.send((step.inputs["row"].address, row), (step.inputs["update"].address, update))
            step.run()

    def state(self) -> tuple[Floats, Floats]:
        state, slots = self._bound()
        with self._device.use():
            place = state.places[state.now]
            return place["latents"].read(slots), place["history"].read(slots)

    def velocity(self) -> Floats:
        state, slots = self._bound()
        with self._device.use():
            velocity: Floats = state.velocity.read(slots)
            return velocity

    def captured(self) -> dict[StepKey, int]:
        """Return how many of its two calls are captured, of every size, the least recently used first."""
        return {key: step.captured for key, step in self._steps.items()}

    def forget(self) -> None:
        """Let go of the engine; the next step asks for it again. Arenas and the state of the pack stay."""
        self._forget_steps()

    def _forget_steps(self) -> None:
        if self._steps:
            self._device.driver.synchronize(self._device.stream)  # what is queued may still run them
        for step in self._steps.values():
            step.forget()
        self._steps.clear()

    def _bound(self) -> tuple[SlotState, int]:
        assert self._key is not None
        assert self._tables is not None
        return self._states[self._key.slots], self._tables.slots

    def _current(self) -> Step:
        """Return the step for the current tables, with them in place."""
        key, (state, _) = self._key, self._bound()
        assert key is not None
        assert self._tables is not None
        calls = self._engines.calls("denoiser", 0 if key in self._steps else 2)  # may load, and so forget steps
        if key not in self._steps:
            first, second = calls or self._engines.calls("denoiser", 2)
            device = self._device
            self._steps[key] = Step(
                key,
                (first, second),
                self._graph,
                self._sizes.lengths(key),
                self._arenas.arrays,
                state,
                device.driver,
                device.stream,
            )
        self._steps.move_to_end(key)
        if len(self._steps) > MAX_STEPS:
            self._device.driver.synchronize(self._device.stream)
            self._steps.popitem(last=False)[1].forget()
            used = {step.state.slots for step in self._steps.values()}
            self._states = {slots: kept for slots, kept in self._states.items() if slots in used}
        step = self._steps[key]
        step.load(self._tables)
        return step
