"""The CUDA driver as this backend uses it: one device, memory, copies in the order of a stream, events and graphs."""

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from framert.runtime.errors import BackendError

PACKAGE = "cuda.bindings.driver"
INSTALL = "pip install 'cuda-python>=12.8'"
NO_GPU = "backend 'tensorrt' needs an NVIDIA GPU with its driver"
# What is given back -> the function that frees it.
FREES = {"memory": "cuMemFree", "pinned": "cuMemFreeHost", "event": "cuEventDestroy", "graph": "cuGraphExecDestroy"}
OTHER = "install NVIDIA's driver (nvidia-smi must list the GPU), or load the exported bundle with backend='onnxruntime'"


class Driver:
    """Calls of the driver API on the first CUDA device, in its primary context, which TensorRT uses too.

    Addresses are whole numbers. What takes a stream happens in its order; nothing here waits but ``synchronize``,
    ``wait`` and the freeing of memory.

    Args:
        cuda: stands in for the module cuda.bindings.driver in tests.
    Raises: BackendError if the package, the driver or a GPU is missing.
    """

    def __init__(self, cuda: Any = None) -> None:
        self._cuda = cuda if cuda is not None else _import()
        try:
            failed, _ = _parts(self._cuda.cuInit(0))
        except Exception as error:  # its own errors, where there is no libcuda
            raise BackendError(f"{NO_GPU}, and finds no driver ({_line(error)}); {OTHER}") from error
        if not failed:
            failed, (count,) = _parts(self._cuda.cuDeviceGetCount())
        if failed or not count:
            reason = f"the driver says {self._name(failed)}" if failed else "the driver lists none"
            raise BackendError(f"{NO_GPU}, and {reason}; {OTHER}")
        (self._device,) = self._call("cuDeviceGet", 0)
        (name,) = self._call("cuDeviceGetName", 256, self._device)
        self.gpu: str = bytes(name).split(b"\0")[0].decode(errors="replace")
        attribute = self._cuda.CUdevice_attribute
        (major,) = self._call(
            "cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device
        )
        (minor,) = self._call(
            "cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device
        )
        self.target = f"sm_{major}{minor}"
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._unused: deque[tuple[str, Any]] = deque()  # function and what it frees, whose owner is gone
        weakref.finalize(self, _free, self._cuda, self._context, self._unused).atexit = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device the calling thread's for a block, and then the one before it again."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    # memory

    def allocate(self, size: int, what: str) -> int:
        """Return the address of so many bytes. what: for the error. Raises: BackendError if there is no room."""
        self.collect()
        failed, rest = _parts(self._cuda.cuMemAlloc(max(size, 1)))
        if failed:
            free, total = self.memory()
            raise BackendError(
                f"no room for {what}: {size / 2**20:.0f} MiB asked for, {free / 2**20:.0f} of {total / 2**20:.0f} MiB "
                f"free ({self._name(failed)}); load with low_memory=True, make smaller pictures, or build for fewer "
                "tokens or with --weight-streaming"
            )
        return int(rest[0])

    def release(self, thing: Any, kind: str = "memory") -> None:
        """Give something back soon. Callable at any time, by a garbage collector too: it is freed at the next chance.

        Args:
            thing: an address or a handle. kind: of ``FREES``.
        """
        self._unused.append((FREES[kind], thing))

    def collect(self) -> None:
        """Free what was released."""
        while self._unused:
            self._call(*self._unused.popleft())

    def memory(self) -> tuple[int, int]:
        """Return free and all bytes of the device."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def allocate_pinned(self, size: int) -> int:
        """Return the address of so many bytes of host memory that copies read while the host goes on."""
        (address,) = self._call("cuMemHostAlloc", max(size, 1), 0)
        return int(address)

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def upload(self, target: int, host: int, size: int, stream: int) -> None:
        """Copy from the host. Pinned memory is read later, any other before this returns."""
        if size:
            self._call("cuMemcpyHtoDAsync", target, host, size, self._stream(stream))

    def download(self, host: int, source: int, size: int, stream: int) -> None:
        if size:
            self._call("cuMemcpyDtoHAsync", host, source, size, self._stream(stream))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within the device."""
        if size:
            self._call("cuMemcpyDtoDAsync", target, source, size, self._stream(stream))

    def zero(self, target: int, size: int, stream: int) -> None:
        if size:
            self._call("cuMemsetD8Async", target, 0, size, self._stream(stream))

    # order

    def stream(self) -> int:
        """Return a new stream; the handle is what TensorRT takes."""
        (stream,) = self._call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(stream)

    def synchronize(self, stream: int) -> None:
        """Wait for what is queued. Raises: BackendError for what failed on the device since."""
        self._call("cuStreamSynchronize", self._stream(stream))

    def event(self) -> Any:
        (event,) = self._call("cuEventCreate", self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return event

    def record(self, event: Any, stream: int) -> None:
        self._call("cuEventRecord", event, self._stream(stream))

    def wait(self, event: Any) -> None:
        """Wait for what was queued before the event was recorded; returns at once if it never was."""
        self._call("cuEventSynchronize", event)

    # graphs

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Return the graph of what ``work`` queues, which is not done yet. Other threads may go on queueing.

        Raises: what ``work`` raises; BackendError if something in it cannot be captured.
        """
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream(stream), mode)
        try:
            work()
        except BaseException:
            failed, rest = _parts(self._cuda.cuStreamEndCapture(self._stream(stream)))  # or the stream stays capturing
            if not failed and int(rest[0]):
                self._call("cuGraphDestroy", rest[0])
            raise
        (graph,) = self._call("cuStreamEndCapture", self._stream(stream))
        try:
            (made,) = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return made

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cuGraphLaunch", graph, self._stream(stream))

    def _stream(self, stream: int) -> Any:
        return self._cuda.CUstream(stream)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        failed, rest = _parts(getattr(self._cuda, name)(*arguments))
        if failed:
            raise BackendError(f"the CUDA driver refuses {name}: {self._name(failed)}")
        return rest

    def _name(self, code: Any) -> str:
        failed, rest = _parts(self._cuda.cuGetErrorName(code))
        return f"error {int(code)}" if failed else bytes(rest[0]).decode()


def _free(cuda: Any, context: Any, unused: deque[tuple[str, Any]]) -> None:
    """Free what was released and not collected, once nobody has the driver any more; what fails is left."""
    if not unused:
        return
    with contextlib.suppress(Exception):  # the driver may be gone, and whoever runs this has no use for its words
        cuda.cuCtxPushCurrent(context)
        try:
            cuda.cuCtxSynchronize()
            while unused:
                by, thing = unused.popleft()
                getattr(cuda, by)(thing)
        finally:
            cuda.cuCtxPopCurrent()


def _import() -> Any:
    try:
        return import_module(PACKAGE)
    except (ImportError, OSError) as error:
        raise BackendError(f"backend 'tensorrt' needs the package cuda-python ({_line(error)}); {INSTALL}") from error


def _parts(result: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return the error code, false for none, and the values of a call."""
    code, *rest = result
    return (code if int(code) else 0), tuple(rest)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
