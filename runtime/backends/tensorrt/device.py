"""The GPU as one backend uses it: one stream for everything, since all engines compute in the same memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from framert.runtime.backends.tensorrt.driver import Driver
from framert.runtime.backends.tensorrt.memory import Activations
from framert.runtime.backends.tensorrt.staging import Staging


class Device:
    """A stream, the block that engines compute in, and pinned memory.

    Args:
        cuda: stands in for the module cuda.bindings.driver in tests.
    Raises: BackendError if there is no GPU with a driver.
    """

    def __init__(self, cuda: Any = None) -> None:
        self.driver = Driver(cuda)
        with self.driver.current():
            self.stream = self.driver.stream()
            self.activations = Activations(self.driver, self.stream)
            self.staging = Staging(self.driver, self.stream)
        self._lock = threading.RLock()

    @contextmanager
    def use(self) -> Iterator["Device"]:
        """Have the device to oneself for a block; other threads wait."""
        with self._lock, self.driver.current():
            yield self
