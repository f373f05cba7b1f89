"""CUDA graphs of one denoiser: captured one at a time, in memory that they share."""

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch

_CAPTURING = threading.Lock()  # torch allows one capture at a time in a process, and engines have threads of their own


class Captures:
    """Captures calls on one device. The graphs are replayed one after another on one stream, so they share memory.

    Args:
        device: a CUDA device, which must be the current one of the thread that captures.
    """

    def __init__(self, device: torch.device) -> None:
        stream: Any = torch.cuda.Stream  # which torch does not type
        self._stream = stream(device)
        self._alive: WeakSet[Any] = WeakSet()

    def capture(self, compute: Callable[[], None]) -> Any:
        """Return the graph of what ``compute`` does on the device, which does not happen yet.

        Memory is taken from a graph that still lives: torch retires a pool with its last graph, and a later capture
        into a retired one fails.
        """
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        with _CAPTURING, torch.cuda.stream(before):  # which torch does not restore by itself where a capture breaks
            pool = next((other.pool() for other in self._alive), None)
            try:
                # other threads may go on launching: theirs is not captured
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    compute()
            except BaseException:
                self._alive.clear()  # torch may take the broken capture's pool for one still being recorded
                raise
        self._alive.add(graph)
        return graph
