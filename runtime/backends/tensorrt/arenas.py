"""The arenas on the device: what the conditioner made of prompts and schedules, at rows that the runtime gives out."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from framert.runtime.backends.base import text_arenas
from framert.runtime.backends.tensorrt.driver import Driver
from framert.runtime.backends.tensorrt.memory import DeviceArray
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.errors import BackendError
from framert.runtime.manifest import Manifest, TensorSpec

MODULATION = "modulation"


class Arenas:
    """Text arenas and modulation of one denoiser, by the names of its inputs.

    They grow by moving: ``arrays`` are others then, at other addresses.

    Args:
        profiles: say how large they may become.
    """

    def __init__(self, driver: Driver, stream: int, manifest: Manifest, profiles: Profiles) -> None:
        self._driver, self._stream = driver, stream
        self._profiles = profiles
        self._inputs = manifest.graphs["denoiser"].inputs
        self._axis = {**text_arenas(manifest), MODULATION: 0}
        self.arrays: Mapping[str, DeviceArray] = {
            name: self._made(name, 1) for name in self._axis
        }  # TensorRT takes no empty ones

    def reserve(self, *, text: int, rows: int) -> bool:
        """Make them hold so much, the contents kept; return whether they moved.

        Raises: BackendError if the engine was not built for that, or there is no room; nothing has grown then.
        """
        wanted = {name: rows if name == MODULATION else text for name in self._axis}
        grown = {name: self._grown(name, length) for name, length in wanted.items()}
        moved = any(grown[name] is not array for name, array in self.arrays.items())
        self.arrays = grown
        return moved

    def write(self, name: str, begin: int, values: Any) -> None:
        """Store a host or device array at entries from ``begin`` of the arena's free axis."""
        array, axis = self.arrays[name], self._axis[name]
        blocks, length, width = prod(array.shape[:axis]), values.shape[axis], prod(array.shape[axis + 1 :])
        if begin + length > array.shape[axis]:
            raise BackendError(f"{name} holds {array.shape[axis]} rows, and {begin + length} were written")
        row = width * array.dtype.itemsize
        target = array.address + begin * row
        host = None if isinstance(values, DeviceArray) else np.ascontiguousarray(values, array.dtype)
        for block in range(blocks):
            place = target + block * array.shape[axis] * row
            offset = block * length * row
            if host is None:
                self._driver.copy(place, values.address + offset, length * row, self._stream)
            else:
                self._driver.upload(place, host.ctypes.data + offset, length * row, self._stream)

    def _grown(self, name: str, length: int) -> DeviceArray:
        array, axis = self.arrays[name], self._axis[name]
        if array.shape[axis] >= length:
            return array
        larger = self._made(name, length)
        row = prod(array.shape[axis + 1 :]) * array.dtype.itemsize
        for block in range(prod(array.shape[:axis])):
            source = array.address + block * array.shape[axis] * row
            self._driver.copy(larger.address + block * length * row, source, array.shape[axis] * row, self._stream)
        return larger

    def _made(self, name: str, length: int) -> DeviceArray:
        spec: TensorSpec = self._inputs[name]
        axis = str(spec.shape[self._axis[name]])
        self._profiles.choose("denoiser", {axis: length})
        shape = [length if isinstance(size, str) else size for size in spec.shape]
        made = DeviceArray(self._driver, self._stream, shape, spec.dtype, f"the arena {name}")
        made.zero()  # rows that nobody wrote are read, by padding, and may not hold NaN
        return made
