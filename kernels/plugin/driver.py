"""The CUDA driver, as far as a plugin needs it: load a cubin, launch its kernel on a stream."""

import ctypes
from collections.abc import Sequence
from typing import Any

from framert.kernels.plugin.launch import Launch
from framert.runtime.errors import BackendError

LIBRARY = "libcuda.so.1"
DEFAULT_SHARED = 48 << 10  # bytes that a kernel may use without asking
MAX_DYNAMIC_SHARED_SIZE = 8  # CUfunction_attribute
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class Driver:
    """Calls of the CUDA driver API in the context that is current.

    library: stands in for libcuda in tests.
    Raises: BackendError if there is no driver.
    """

    def __init__(self, library: Any = None) -> None:
        try:
            self._cuda = library or ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise BackendError(f"no CUDA driver ({error}); install NVIDIA's, or use another backend") from error

    def context(self) -> int:
        """Return the handle of the current context."""
        handle = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(handle))
        return handle.value or 0

    def target(self) -> str:
        """Return the compute capability of the current context's device, such as "sm_89"."""
        device, value = ctypes.c_int(), ctypes.c_int()
        self._call("cuCtxGetDevice", ctypes.byref(device))
        numbers = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        return f"sm_{numbers[0]}{numbers[1]}"

    def load(self, launch: Launch) -> ctypes.c_void_p:
        """Return the kernel of an image, ready to launch. It stays loaded as long as the context lives."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), launch.image)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, launch.entry.encode())
        if launch.shared_memory > DEFAULT_SHARED:
            self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE, launch.shared_memory)
        return function

    def launch(
        self,
        function: ctypes.c_void_p,
        launch: Launch,
        blocks: Sequence[int],
        parameters: Sequence[ctypes.c_uint64 | ctypes.c_int32],
        stream: int,
    ) -> None:
        """Start the kernel; the parameters are copied before this returns."""
        addresses = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(one) for one in parameters))
        self._call(
            "cuLaunchKernel", function, *blocks, launch.threads, 1, 1, launch.shared_memory,
            ctypes.c_void_p(stream), addresses, None,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._cuda, name)(*arguments):
            raise BackendError(f"the CUDA driver refuses {name} (error {code})")
