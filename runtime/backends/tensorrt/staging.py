"""Small arrays to the device in every step, without the host ever waiting for the device."""

import ctypes
import weakref
from typing import Any

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.backends.tensorrt.driver import Driver

DEPTH = 4  # steps that the host may be ahead


class Staging:
    """Pinned buffers in a ring: a buffer is written again only when the copy out of it is done."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self._driver, self._stream = driver, stream
        self._places = [0] * DEPTH
        self._sizes = [0] * DEPTH
        self._copied: list[Any] = [driver.event() for _ in range(DEPTH)]
        self._next = 0
        weakref.finalize(self, _release, driver, self._places, self._copied).atexit = False

    def send(self, *pairs: tuple[int, Array]) -> None:
        """Copy each array to its address on the device, in the order of the stream; the arrays may change at once."""
        turn, self._next = self._next, (self._next + 1) % DEPTH
        arrays = [np.ascontiguousarray(values) for _, values in pairs]
        self._driver.wait(self._copied[turn])
        place = self._room(turn, sum(array.nbytes for array in arrays))
        for (target, _), array in zip(pairs, arrays, strict=True):
            ctypes.memmove(place, array.ctypes.data, array.nbytes)
            self._driver.upload(target, place, array.nbytes, self._stream)
            place += array.nbytes
        self._driver.record(self._copied[turn], self._stream)

    def _room(self, turn: int, size: int) -> int:
        """Return the address of a buffer of so many bytes, whose copies are done."""
        if self._sizes[turn] < size:
            if self._places[turn]:
                self._driver.free_pinned(self._places[turn])
            self._places[turn] = self._sizes[turn] = 0  # and so they stay if there is no room
            self._places[turn], self._sizes[turn] = self._driver.allocate_pinned(size), size
        return self._places[turn]


def _release(driver: Driver, places: list[int], copied: list[Any]) -> None:
    for place in filter(None, places):
        driver.release(place, "pinned")
    for event in copied:
        driver.release(event, "event")
