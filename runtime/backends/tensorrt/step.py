"""One size of the step: its tables at fixed addresses, and a call with its CUDA graph for each way latents move."""

import logging
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from framert.runtime.arrays import Floats
from framert.runtime.backends.tensorrt.driver import Driver
from framert.runtime.backends.tensorrt.engine import Call
from framert.runtime.backends.tensorrt.memory import DeviceArray
from framert.runtime.backends.tensorrt.shapes import StepKey
from framert.runtime.errors import BackendError
from framert.runtime.manifest import Graph
from framert.runtime.tables import Tables
from framert.runtime.windows import WINDOWS

_log = logging.getLogger("framert")
STATE = ("latents", "history")  # a call reads them from one place and writes them, as next_NAME, to the other


class SlotState:
    """Latents and history of a pack in two places, and the velocity of its last call, (slots, width) each.

    now: the place that holds what the last call made.
    """

    def __init__(self, driver: Driver, stream: int, slots: int, graph: Graph) -> None:
        def made(name: str) -> DeviceArray:
            spec = graph.outputs[name]
            return DeviceArray(driver, stream, (slots, *map(int, spec.shape[1:])), spec.dtype, "latents")

        self.slots = slots
        self.places = [{name: made(f"next_{name}") for name in STATE} for _ in range(2)]
        self.velocity = made("velocity")
        self.now = 0

    def take(self, latents: Floats, history: Floats) -> None:
        """Start from (n, width) values of the first n slots."""
        for array in (*self.places[0].values(), *self.places[1].values(), self.velocity):
            array.zero()
        self.places[0]["latents"].write(latents)
        self.places[0]["history"].write(history)
        self.now = 0


class Step:
    """Runs packs of one key. A call is queued as it is the first time, captured in the second, replayed from then on.

    Args:
        calls: two fresh ones of the denoiser's engine: from the first place of ``state`` to the second, and back.
        graph: the denoiser's inputs and outputs. lengths: of their free axes. arenas: its inputs that outlive a pack.
    """

    def __init__(
        self,
        key: StepKey,
        calls: tuple[Call, Call],
        graph: Graph,
        lengths: Mapping[str, int],
        arenas: Mapping[str, DeviceArray],
        state: SlotState,
        driver: Driver,
        stream: int,
    ) -> None:
        self.state = state
        self._driver, self._stream = driver, stream
        self._holds: Tables | None = None
        given = {**arenas, **dict.fromkeys(STATE)}
        self.inputs: dict[str, DeviceArray] = {}
        for name, spec in graph.inputs.items():
            if name not in given:
                shape = [lengths[size] if isinstance(size, str) else size for size in spec.shape]
                self.inputs[name] = DeviceArray(driver, stream, shape, spec.dtype, "tables of a step")
                self.inputs[name].zero()
        for name in WINDOWS:
            if name in self.inputs:
                self.inputs[name].write(np.arange(self.inputs[name].shape[0], dtype=np.int32))
        fixed = {**arenas, **self.inputs}
        self._turns = []
        for source, call in enumerate(calls):
            reads, writes = state.places[source], state.places[1 - source]
            arrays = {**fixed, **reads}
            call.shape(key.profile, {name: arrays[name].shape for name in graph.inputs})
            call.address({name: array.address for name, array in arrays.items()})
            call.address({f"next_{name}": writes[name].address for name in STATE})
            call.address({"velocity": state.velocity.address})
            self._turns.append(_Turn(call, driver, stream))

    @property
    def captured(self) -> int:
        """How many of its two calls are captured."""
        return sum(turn.graph is not None for turn in self._turns)

    def load(self, tables: Tables) -> None:
        """Take a pack's tables; what it does not fill are empty sequences and slots without guidance."""
        if self._holds is tables:
            return
        for name, values in tables.arrays().items():
            if name in self.inputs:
                self.inputs[name].zero()
                self.inputs[name].write(values)
        self._holds = tables

    def run(self) -> None:
        """Queue one call; row and update are already in place. Raises: BackendError; the state is then as it was."""
        self._turns[self.state.now].run()
        self.state.now = 1 - self.state.now

    def forget(self) -> None:
        """Give back what was captured; the step is not run again."""
        for turn in self._turns:
            turn.forget()


class _Turn:
    """A call with its graph."""

    def __init__(self, call: Call, driver: Driver, stream: int) -> None:
        self.graph: Any = None
        self._call, self._driver, self._stream = call, driver, stream
        self._runs = 0
        self._give_back: Any = None
        self._plain = False  # it cannot be captured

    def run(self) -> None:
        self._runs += 1
        if self.graph is None and (self._runs == 1 or self._plain):  # TensorRT sets itself up in the first call
            self._call.queue()
            return
        if self.graph is None and not self._capture():
            self._call.queue()
            return
        self._driver.launch(self.graph, self._stream)

    def _capture(self) -> bool:
        """Capture the call. An engine that cannot be captured gives the same results, only later."""
        reason = "" if self._call.capturable else "TensorRT says that it cannot"
        if not reason:
            try:
                self.graph = self._driver.capture(self._stream, self._call.queue)
            except BackendError as error:
                reason = str(error)
        if reason:
            self._plain = True
            _log.warning("a step is not captured as a CUDA graph: %s", reason)
        else:
            self._give_back = weakref.finalize(self, self._driver.release, self.graph, "graph")
            self._give_back.atexit = False
        return not reason

    def forget(self) -> None:
        if self.graph is not None:
            self._give_back()
            self._driver.collect()
            self.graph = None
