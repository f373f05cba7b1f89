"""A denoiser of ONNX Runtime whose arenas, tables and latents stay on the device between steps."""

from typing import TYPE_CHECKING, Any

import numpy as np

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.backends.host import HostArenas
from framert.runtime.bundle import Bundle
from framert.runtime.tables import Tables
from framert.runtime.windows import has_windows, windows

if TYPE_CHECKING:
    from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend

STATE = ("latents", "history")


class OnnxRuntimeDeviceDenoiser(HostArenas):
    """Per step only ``row`` and ``update`` go to the device; arenas go again after something was written to them.

    Latents and history are read from one of two places and written to the other. On the CPU the same code runs on
    host memory, which is how it is tested; on a GPU it has not run yet.

    Args:
        device: as onnxruntime names it, "cuda" or "cpu".
    """

    def __init__(self, backend: "OnnxRuntimeBackend", bundle: Bundle, device: str) -> None:
        super().__init__(bundle.manifest)
        self._backend = backend
        self._device = device
        self._inputs = bundle.manifest.graphs["denoiser"].inputs
        self._values: dict[str, Any] = {}  # tables and arenas on the device
        self._fresh: set[str] = set()  # arenas whose contents changed since
        self._places: list[dict[str, Any]] = []
        self._velocity: Any = None
        self._now = 0

    def padded(self, tokens: int) -> int:
        return tokens

    def reserve(self, *, text: int, rows: int) -> None:
        super().reserve(text=text, rows=rows)
        self._fresh |= set(self.arenas)

    def write_text(self, begin: int, *parts: Array) -> None:
        super().write_text(begin, *parts)
        self._fresh |= set(self.text)

    def write_modulation(self, begin: int, modulation: Array) -> None:
        super().write_modulation(begin, modulation)
        self._fresh.add("modulation")

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        arrays = tables.arrays()
        if has_windows(self._inputs):
            arrays |= windows(tables)
        self._values |= {name: self._put(array) for name, array in arrays.items()}
        self._places = [{name: self._put(array) for name, array in zip(STATE, (latents, history), strict=True)}]
        self._places.append({name: self._put(np.zeros_like(latents)) for name in STATE})
        self._velocity = self._put(np.zeros_like(latents))
        self._now = 0

    def step(self, row: Ints, update: Floats) -> None:
        for name in self._fresh:
            self._values[name] = self._put(self.arenas[name])
        self._fresh.clear()
        for name, array in (("row", row), ("update", update)):
            held = self._values.get(name)
            if held is not None and tuple(held.shape()) == array.shape:
                held.update_inplace(np.ascontiguousarray(array))
            else:
                self._values[name] = self._put(array)
        now, after = self._places[self._now], self._places[1 - self._now]

        def work(session: Any) -> None:
            binding = session.io_binding()
            for name, value in (self._values | now).items():
                binding.bind_ortvalue_input(name, value)
            for name, value in after.items():
                binding.bind_ortvalue_output(f"next_{name}", value)
            binding.bind_ortvalue_output("velocity", self._velocity)
            session.run_with_iobinding(binding)

        self._backend.call("denoiser", work)
        self._now = 1 - self._now

    def state(self) -> tuple[Floats, Floats]:
        latents, history = (self._places[self._now][name].numpy().copy() for name in STATE)
        return latents, history

    def velocity(self) -> Floats:
        guided: Floats = self._velocity.numpy().copy()
        return guided

    def _put(self, array: Array) -> Any:
        return self._backend.value(np.ascontiguousarray(array), self._device)
