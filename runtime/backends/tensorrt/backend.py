"""The backend: which engines are on the device, calls of those around the denoiser, and a denoiser for each engine."""

from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.backends.base import Limits
from framert.runtime.backends.tensorrt import fit, library
from framert.runtime.backends.tensorrt.arenas import Arenas
from framert.runtime.backends.tensorrt.denoiser import TensorRtDenoiser
from framert.runtime.backends.tensorrt.device import Device
from framert.runtime.backends.tensorrt.engine import Call, LoadedEngine
from framert.runtime.backends.tensorrt.limits import EngineLimits
from framert.runtime.backends.tensorrt.memory import DeviceArray
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.backends.tensorrt.rebuild import rebuild_command
from framert.runtime.backends.tensorrt.shapes import CallSizes
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.sizes import text_length

KEPT = "conditioner"  # its outputs are read by denoisers alone, and stay on the device


class TensorRtBackend:
    """Engines of one bundle.

    Args:
        bundle: an opened bundle that ``framert build`` made, of kind "tensorrt" or "tensorrt-rtx".
        low_memory: hold one engine at a time, with what it computes in; else all are loaded for the first denoiser.
        device: for tests; None is the first CUDA device.
    profiles: the sizes that the engines were built for.
    Raises: BackendError if a package, the driver or the GPU is missing, or the engines are for others than those here.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, *, low_memory: bool = False, device: Device | None = None) -> None:
        kind = fit.check_kind(bundle)
        self.library = library.load(kind)
        fit.check_version(bundle, self.library.version)
        self._device = device or Device()
        fit.check_gpu(bundle, self._device.driver.target, self._device.driver.gpu)
        self._bundle = bundle
        self.profiles = Profiles.read(bundle.path, tuple(bundle.manifest.graphs), partial(rebuild_command, bundle))
        self._sizes = CallSizes(self.profiles, text_length(bundle.manifest))
        self.limits: Limits = EngineLimits(self.profiles, self._sizes, bundle.manifest.model.vae_factor)
        self._low_memory = low_memory
        self._engines: dict[str, LoadedEngine] = {}
        self._runs: dict[str, Call] = {}  # of graphs other than the denoiser
        self._buffers: dict[tuple[str, str], DeviceArray] = {}  # of their inputs and outputs
        self._denoisers: WeakSet[TensorRtDenoiser] = WeakSet()

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Any]:
        spec = self._bundle.manifest.graphs[graph]
        arrays = {name: np.ascontiguousarray(values, spec.inputs[name].dtype) for name, values in feeds.items()}
        profile = self.profiles.choose(graph, self._sizes_of(graph, arrays))
        with self._device.use() as device:
            self._load(graph)
            if graph not in self._runs:
                (self._runs[graph],) = self.calls(graph, 1)
            call = self._runs[graph]
            call.shape(profile, {name: array.shape for name, array in arrays.items()})
            for name, array in arrays.items():
                buffer = self._buffer(graph, name, array.shape, spec.inputs[name].dtype)
                buffer.write(array)
                call.address({name: buffer.address})
            made = {}
            for name, output in spec.outputs.items():
                shape = call.output_shape(name)
                if graph == KEPT:  # its owner may keep it while another thread runs this graph again
                    made[name] = DeviceArray(device.driver, device.stream, shape, output.dtype, f"{graph}'s {name}")
                else:
                    made[name] = self._buffer(graph, name, shape, output.dtype)
                call.address({name: made[name].address})
            call.queue()
            if graph == KEPT:
                return dict(made)
            return {name: self._read(array, call.output_shape(name)) for name, array in made.items()}

    def denoiser(self) -> TensorRtDenoiser:
        with self._device.use() as device:
            for graph in () if self._low_memory else self._bundle.manifest.graphs:
                self._load(graph)
            arenas = Arenas(device.driver, device.stream, self._bundle.manifest, self.profiles)
            made = TensorRtDenoiser(self, device, self._bundle.manifest, self._sizes, arenas)
            self._denoisers.add(made)
        return made

    @property
    def device_name(self) -> str:
        return self._device.driver.gpu

    def read(self, array: DeviceArray) -> Array:
        """Return what stayed on the device, see ``run``."""
        with self._device.use():
            values: Array = array.read()
            return values

    def calls(self, graph: str, count: int) -> list[Call]:
        """Return fresh calls of a graph's engine, which is loaded first where it is not. Within ``Device.use``."""
        device = self._device
        engine = self._load(graph)
        return [Call(engine, self.library, device.activations, device.stream) for _ in range(count)]

    def _load(self, graph: str) -> LoadedEngine:
        if graph not in self._engines:
            if self._low_memory:
                self._unload()
            brought = self.library.register_plugin(self._bundle.manifest.target.get("plugins", ""))
            self._engines[graph] = LoadedEngine(
                self._bundle, graph, self.library, self.profiles, brought, self.device_name
            )
        size = max(engine.size for engine in self._engines.values())
        if size > self._device.activations.size:
            self._forget()  # what was captured computes where the block was
            self._device.activations.hold(size)
        return self._engines[graph]

    def _unload(self) -> None:
        self._forget()
        self._device.driver.synchronize(self._device.stream)
        self._runs.clear()
        self._buffers.clear()
        self._engines.clear()
        self._device.activations.drop()
        self._device.driver.collect()

    def _forget(self) -> None:
        for denoiser in self._denoisers:
            denoiser.forget()

    def _buffer(self, graph: str, name: str, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Return an array of at least so many bytes that is used again in the next call."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        kept = self._buffers.get((graph, name))
        if kept is None or kept.nbytes < size:
            self._buffers.pop((graph, name), None)
            made = DeviceArray(self._device.driver, self._device.stream, shape, dtype, f"{graph}'s {name}")
            self._buffers[graph, name] = made
        return self._buffers[graph, name]

    def _read(self, buffer: DeviceArray, shape: tuple[int, ...]) -> Array:
        host = np.empty(shape, buffer.dtype)
        self._device.driver.download(host.ctypes.data, buffer.address, host.nbytes, self._device.stream)
        self._device.driver.synchronize(self._device.stream)
        return host

    def _sizes_of(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Return the free axes' sizes in a call. Raises: BackendError for inputs that the graph does not have."""
        sizes: dict[str, int] = {}
        inputs = self._bundle.manifest.graphs[graph].inputs
        if set(inputs) != set(arrays):
            raise BackendError(f"{graph} takes {', '.join(inputs)}; given {', '.join(arrays)}")
        for name, spec in inputs.items():
            shape = arrays[name].shape
            fits = len(shape) == len(spec.shape)
            for size, length in zip(spec.shape, shape, strict=False):
                fits &= sizes.setdefault(size, length) == length if isinstance(size, str) else size == length
            if not fits:
                raise BackendError(f"{graph} takes {name} of {spec.shape}; given is one of {shape}")
        return sizes
