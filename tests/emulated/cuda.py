"""The CUDA driver in host memory, as far as backend "tensorrt" uses it, with the names of cuda.bindings.driver.

It moves real bytes and refuses what the driver refuses. What is queued on a stream is done as late as the driver may do
it: when somebody waits. So a buffer that is written again too early, freed while in use, or changed behind a captured
graph gives wrong numbers here as there.
"""

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any

POISON = 0xFF  # a NaN as float, -1 as a whole number


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUdevice_attribute(IntEnum):  # the driver's name
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUstream_flags(IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(IntEnum):
    CU_EVENT_DISABLE_TIMING = 2


OK = CUresult.CUDA_SUCCESS
Work = Callable[[], None]


class _Stream:
    def __init__(self) -> None:
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.broken = False


class _Illegal(Exception):
    pass


class Cuda:
    """One emulated device.

    Args:
        capability: compute capability. memory: bytes of the device. devices: how many the driver lists.
    """

    CUdevice_attribute = CUdevice_attribute
    CUstreamCaptureMode = CUstreamCaptureMode
    CUstream_flags = CUstream_flags
    CUevent_flags = CUevent_flags
    CUresult = CUresult

    def __init__(self, capability: tuple[int, int] = (8, 9), memory: int = 1 << 30, devices: int = 1) -> None:
        self.capability, self.total, self.devices = capability, memory, devices
        self.live: dict[int, Any] = {}  # address -> buffer
        self.pinned: dict[int, Any] = {}
        self.graves: list[Any] = []  # freed memory stays mapped, poisoned: a late write is then found, not a crash
        self.streams: dict[int, _Stream] = {}
        self.events: dict[
            int, tuple[_Stream, list[bool]] | None
        ] = {}  # where each was recorded, and whether it is past
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.contexts = threading.local()
        self.sticky = OK
        self.launches = self.allocations = 0
        self._names = iter(range(1000, 1 << 30))

    @property
    def used(self) -> int:
        return sum(len(buffer) for buffer in self.live.values())

    # what every call has in common

    def _stack(self) -> list[int]:
        if not hasattr(self.contexts, "stack"):
            self.contexts.stack = []
        return self.contexts.stack

    def _ready(self) -> CUresult:
        return OK if self._stack() else CUresult.CUDA_ERROR_INVALID_CONTEXT

    def _capturing(self) -> bool:
        return any(stream.captured is not None for stream in self.streams.values())

    def put(self, stream: int, work: Work) -> CUresult:
        """Queue work, or add it to what is captured."""
        failed = self._ready() or self.sticky
        if failed:
            return failed
        found = self.streams.get(int(stream))
        if found is None:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        (found.queue if found.captured is None else found.captured).append(work)
        return OK

    def drain(self, stream: _Stream) -> None:
        while stream.queue:
            work = stream.queue.pop(0)
            try:
                work()
            except _Illegal:
                self.sticky = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
                stream.queue.clear()

    def check(self, address: int, size: int) -> int:
        """Return an address on the device; whoever touches it outside of what is allocated has broken the context."""
        for begin, buffer in self.live.items():
            if begin <= address and address + size <= begin + len(buffer):
                return address
        raise _Illegal

    # the driver's functions, in its order of arguments; each returns (error, values..)

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (CUresult.CUDA_ERROR_NO_DEVICE if not self.devices else OK,)

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return OK, self.devices

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return OK, ordinal

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Any, ...]:
        return OK, b"Emulated GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: CUdevice_attribute, device: int) -> tuple[Any, ...]:
        return OK, self.capability[attribute - CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        return OK, 1

    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        self._stack().append(context)
        return (OK,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return OK, self._stack().pop()

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        for stream in self.streams.values():
            self.drain(stream)
        return (self._ready() or self.sticky,)

    def cuGetErrorName(self, error: CUresult) -> tuple[Any, ...]:
        return OK, CUresult(error).name.encode()

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return self._ready(), self.total - self.used, self.total

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        failed = self._ready() or self.sticky
        if failed or not size:
            return failed or CUresult.CUDA_ERROR_INVALID_VALUE, 0
        if self._capturing():
            self._break()
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        if size > self.total - self.used:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        buffer = ctypes.create_string_buffer(size)
        ctypes.memset(buffer, POISON, size)
        self.live[ctypes.addressof(buffer)] = buffer
        self.allocations += 1
        return OK, ctypes.addressof(buffer)

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        if self._capturing():
            self._break()
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if address not in self.live or self._ready():
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        for stream in self.streams.values():  # cuMemFree waits for the device
            self.drain(stream)
        buffer = self.live.pop(address)
        ctypes.memset(buffer, POISON, len(buffer))
        self.graves.append(buffer)
        return (OK,)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        if self._ready():
            return self._ready(), 0
        buffer = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cuMemFreeHost(self, address: int) -> tuple[Any, ...]:
        buffer = self.pinned.pop(address)
        ctypes.memset(buffer, POISON, len(buffer))
        self.graves.append(buffer)
        return (OK,)

    def cuMemcpyHtoDAsync(self, target: int, host: int, size: int, stream: int) -> tuple[Any, ...]:
        pinned = any(begin <= host < begin + len(buffer) for begin, buffer in self.pinned.items())
        content = None if pinned else ctypes.string_at(host, size)  # pageable memory is read before the call returns

        def work() -> None:
            ctypes.memmove(self.check(target, size), host if content is None else content, size)

        return (self.put(stream, work),)

    def cuMemcpyDtoHAsync(self, host: int, source: int, size: int, stream: int) -> tuple[Any, ...]:
        return (self.put(stream, lambda: ctypes.memmove(host, self.check(source, size), size)),)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Any, ...]:
        def work() -> None:
            ctypes.memmove(self.check(target, size), self.check(source, size), size)

        return (self.put(stream, work),)

    def cuMemsetD8Async(self, target: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        return (self.put(stream, lambda: ctypes.memset(self.check(target, size), value, size)),)

    @staticmethod
    def CUstream(handle: int) -> int:
        return handle

    def cuStreamCreate(self, flags: int) -> tuple[Any, ...]:
        name = next(self._names)
        self.streams[name] = _Stream()
        return self._ready(), name

    def cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if self._ready():
            return (self._ready(),)
        found = self.streams[int(stream)]
        if found.captured is not None:
            found.broken = True
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.drain(found)
        return (self.sticky,)

    def cuEventCreate(self, flags: int) -> tuple[Any, ...]:
        name = next(self._names)
        self.events[name] = None
        return self._ready(), name

    def cuEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self.events[event]
        return (self._ready(),)

    def cuEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        done = [False]
        self.events[event] = (self.streams[int(stream)], done)
        return (self.put(stream, lambda: done.__setitem__(0, True)),)

    def cuEventSynchronize(self, event: int) -> tuple[Any, ...]:
        if (recorded := self.events[event]) is not None:
            stream, done = recorded
            while stream.queue and not done[0]:
                stream.queue.pop(0)()
        return (self._ready() or self.sticky,)

    def cuStreamBeginCapture(self, stream: int, mode: CUstreamCaptureMode) -> tuple[Any, ...]:
        found = self.streams[int(stream)]
        found.captured, found.broken = [], False
        return (self._ready(),)

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        found = self.streams[int(stream)]
        work, found.captured = found.captured, None
        if found.broken or work is None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0
        name = next(self._names)
        self.graphs[name] = work
        return OK, name

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        name = next(self._names)
        self.executables[name] = list(self.graphs[graph])
        return OK, name

    def cuGraphLaunch(self, executable: int, stream: int) -> tuple[Any, ...]:
        if executable not in self.executables:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.launches += 1
        for work in self.executables[executable]:
            failed = self.put(stream, work)
            if failed:
                return (failed,)
        return (OK,)

    def cuGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (OK,)

    def cuGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        del self.executables[executable]
        return (OK,)

    def _break(self) -> None:
        for stream in self.streams.values():
            stream.broken = stream.captured is not None
