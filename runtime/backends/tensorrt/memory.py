"""Memory on the device: arrays that are freed with their owner, and the one block that all engines compute in."""

import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.backends.tensorrt.driver import Driver

BFLOAT16 = "bfloat16"  # which numpy lacks; nothing that crosses a graph's border has it


class DeviceArray:
    """A dense array on the device. Nothing is written to it when it is made.

    Args:
        stream: the one that everything of a backend runs in.
        dtype: as the manifest names it, such as "float32".
        what: for the error where there is no room.
    """

    def __init__(self, driver: Driver, stream: int, shape: Sequence[int], dtype: str, what: str) -> None:
        self._driver, self._stream = driver, stream
        self.shape = tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.nbytes = prod(self.shape) * self.dtype.itemsize
        self.address = driver.allocate(self.nbytes, what)
        weakref.finalize(self, driver.release, self.address).atexit = False  # the process's end frees it anyway

    def at(self, *index: int) -> int:
        """Return the address of an element, or of the row of elements that few indices name."""
        offset = sum(place * prod(self.shape[axis + 1 :]) for axis, place in enumerate(index))
        return self.address + offset * self.dtype.itemsize

    def write(self, values: Array, *index: int) -> None:
        """Copy host values, of this dtype and pageable, to where ``index`` points."""
        values = np.ascontiguousarray(values, self.dtype)
        self._driver.upload(self.at(*index), values.ctypes.data, values.nbytes, self._stream)

    def zero(self) -> None:
        self._driver.zero(self.address, self.nbytes, self._stream)

    def read(self, count: int | None = None) -> Any:
        """Wait for what is queued and return a copy, of the first ``count`` entries of axis 0."""
        shape = self.shape if count is None else (count, *self.shape[1:])
        host = np.empty(shape, self.dtype)
        self._driver.download(host.ctypes.data, self.address, host.nbytes, self._stream)
        self._driver.synchronize(self._stream)
        return host


class Activations:
    """The block that engines compute in, one after another, as large as the largest of them asks for.

    address: 0 while there is none; it changes only in ``hold`` and ``drop``.
    """

    def __init__(self, driver: Driver, stream: int) -> None:
        self._driver, self._stream = driver, stream
        self._block: DeviceArray | None = None
        self.address = self.size = 0

    def hold(self, size: int) -> bool:
        """Make the block hold so many bytes; return whether it moved. What was captured before is void then."""
        if size <= self.size:
            return False
        self.drop()
        self._block = DeviceArray(self._driver, self._stream, (size,), "uint8", "what engines compute in")
        self.address, self.size = self._block.address, size
        return True

    def drop(self) -> None:
        """Free the block, once nothing computes in it."""
        if self._block is not None:
            self._driver.synchronize(self._stream)
            self._block = None
            self._driver.collect()
        self.address = self.size = 0
