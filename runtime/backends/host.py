"""What the backends that compute on the CPU share: arenas in host memory, two buffers of latents, and checks."""

import ctypes
import sys

import numpy as np

from framert.runtime.arrays import Array, Floats
from framert.runtime.backends.base import text_arenas
from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Manifest, TensorSpec

MAX_THREADS = 1024  # runtimes start whatever they are told to, and take the machine down


class HostArenas:
    """Arenas and state of a denoiser in memory that the runtime reads and writes without a copy.

    A step reads ``latents`` and ``history``, writes into ``spare()`` and ``guided``, and then swaps: an interrupted or
    failed step leaves the state as it was.
    """

    def __init__(self, manifest: Manifest) -> None:
        inputs = manifest.graphs["denoiser"].inputs
        self._tokens = text_arenas(manifest)
        self.text: dict[str, Floats] = {name: _empty(inputs[name]) for name in self._tokens}
        self.modulation = _empty(inputs["modulation"])
        self.take(*(np.zeros((0, manifest.model.token_width), np.float32),) * 2)

    def reserve(self, *, text: int, rows: int) -> None:
        grown = {name: _grown(store, text, axis=self._tokens[name]) for name, store in self.text.items()}
        self.modulation = _grown(self.modulation, rows, axis=0)
        self.text = grown

    def write_text(self, begin: int, *parts: Array) -> None:
        for (name, axis), part in zip(self._tokens.items(), parts, strict=True):
            place = (slice(None),) * axis + (slice(begin, begin + part.shape[axis]),)
            self.text[name][place] = part

    def write_modulation(self, begin: int, modulation: Array) -> None:
        self.modulation[begin : begin + len(modulation)] = modulation

    @property
    def arenas(self) -> dict[str, Floats]:
        """The denoiser's inputs that outlive a pack."""
        return self.text | {"modulation": self.modulation}

    def take(self, latents: Floats, history: Floats) -> None:
        """Start from (slots, token_width) latents and history; the arrays are read, never written."""
        self.latents, self.history = latents, history
        self.guided = np.zeros_like(latents)
        self._buffers = [(np.empty_like(latents), np.empty_like(latents)) for _ in range(2)]
        self._next = 0

    def spare(self) -> tuple[Floats, Floats]:
        """Return the buffers for the next latents and history."""
        return self._buffers[self._next]

    def swap(self) -> None:
        """Make what was written the state."""
        self.latents, self.history = self._buffers[self._next]
        self._next = 1 - self._next

    def state(self) -> tuple[Floats, Floats]:
        return self.latents.copy(), self.history.copy()

    def velocity(self) -> Floats:
        return self.guided.copy()


def check_threads(threads: int | None) -> None:
    """Raises: ConfigError unless ``threads`` is None or a sensible number."""
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
        raise ConfigError(f"threads is {threads!r}; give a whole number from 1 to {MAX_THREADS}, or None for all cores")


def give_back_memory() -> None:
    """Return freed memory to the system now, where the C library keeps it for later (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def first_line(error: Exception) -> str:
    """Return the first line of a runtime's message, which may go on for pages."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _empty(spec: TensorSpec) -> Floats:
    """Return zeros of an input's fixed sizes, and none of anything along its free axes."""
    return np.zeros([size if isinstance(size, int) else 0 for size in spec.shape], np.float32)


def _grown(store: Floats, length: int, *, axis: int) -> Floats:
    """Return ``store`` with at least ``length`` entries along ``axis``, its contents kept."""
    if store.shape[axis] >= length:
        return store
    shape = list(store.shape)
    shape[axis] = length
    larger = np.zeros(shape, np.float32)
    larger[tuple(slice(size) for size in store.shape)] = store
    return larger
