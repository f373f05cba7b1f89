"""TensorRT 10.3 to 11 and TensorRT-RTX 1.x at run time: everything in which they differ is in this file."""

import mmap
import os
import re
import threading
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from framert.kernels.plugin import frame_attention, recipe
from framert.runtime.backends.tensorrt.kernel_cache import KernelCache
from framert.runtime.errors import BackendError

# Kind of bundle -> module, what installs it, oldest version that has all that is called here.
KINDS = {
    "tensorrt": ("tensorrt", "pip install 'framert[tensorrt]'; on a Jetson it comes with JetPack", (10, 3)),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'framert[tensorrt-rtx]'", (1, 3)),
}
# What is called, by class; the versions differ in more than this. A test holds it against the installed bindings.
NAMES = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context", "device_memory_size_v2", "get_tensor_dtype", "get_tensor_location",
        "get_tensor_mode", "get_tensor_name", "get_tensor_profile_shape", "get_tensor_shape",
        "get_weight_streaming_automatic_budget", "num_io_tensors", "num_optimization_profiles",
        "streamable_weights_size", "weight_streaming_budget_v2",
    ),
    "IExecutionContext": (
        "execute_async_v3", "get_tensor_shape", "infer_shapes", "set_device_memory", "set_input_shape",
        "set_optimization_profile_async", "set_tensor_address",
    ),
    "IPluginRegistry": ("load_library", "register_creator"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "ILogger": ("Severity",),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("DEVICE",),
}  # fmt: skip
# What TensorRT-RTX has beside, where it compiles kernels when a shape is first seen.
RTX_NAMES = {
    "ICudaEngine": ("create_runtime_config",),
    "IExecutionContext": ("is_stream_capturable",),
    "IRuntimeCache": ("deserialize", "serialize"),
    "IRuntimeConfig": (
        "create_runtime_cache", "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy", "set_runtime_cache",
    ),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER", "NONE"),
}  # fmt: skip
LIBRARY, LIBRARY_VARIABLE = "libframert_plugin.so", "FRAMERT_PLUGIN_LIBRARY"  # the launcher of kernels/plugin/cpp
NO_DRIVER = "cudaError 35"  # in every error of TensorRT-RTX on a machine without a driver, whatever its cause


@cache
def load(kind: str) -> "Library":
    """Return the library that runs a kind of bundle, the same one every time: it has one logger per process.

    Raises: BackendError if the kind is unknown, or its package missing, unusable or too old.
    """
    if kind not in KINDS:
        raise BackendError(f"the bundle is built for {kind!r}; backend 'tensorrt' runs {' and '.join(KINDS)}")
    name, remedy, oldest = KINDS[kind]
    try:
        module = import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # its libraries may be there and not load
        raise BackendError(f"a bundle of kind {kind!r} needs the package {name} ({error}); {remedy}") from error
    library = Library(kind, module)
    if library.number < oldest:
        wanted = ".".join(map(str, oldest))
        raise BackendError(f"{name} {library.version} is too old; version {wanted} or newer is needed: {remedy}")
    return library


class Library:
    """One installed TensorRT. module: its Python package. version: as the package says; number: major and minor.

    loading: held while an engine is loaded and judged, so that what another thread's engine brings is not taken for it.
    """

    def __init__(self, kind: str, module: Any) -> None:
        self.kind = kind
        self.module = module
        self.version: str = module.__version__
        self.number = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])
        self._errors: list[str] = []
        self._logger = _logger(module, self._errors)
        self._runtime: Any = None
        self._plugins: dict[str, Any] = {}  # kept for as long as they are registered
        self._brought: list[str] = []
        self._lock = threading.Lock()
        self.loading = threading.Lock()

    def engine(self, file: Path, *, host_code: bool = False) -> Any:
        """Return the engine of a file, its weights on the current device.

        Args:
            host_code: it was built for other versions too, and holds a runtime of its own, which is then run.
        Raises: BackendError in TensorRT's words.
        """
        with self._lock:
            if self._runtime is None:
                self._runtime = self.module.Runtime(self._logger)
            self._runtime.engine_host_code_allowed = host_code
        self._errors.clear()
        try:
            with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                engine = self._runtime.deserialize_cuda_engine(content)
        except (OSError, ValueError) as error:  # missing, unreadable, or empty
            raise BackendError(f"{file} cannot be read ({error})") from error
        if engine is None:
            raise BackendError(f"{self.kind} {self.version} cannot load {file}: {self.words()}")
        return engine

    def stream_weights(self, engine: Any) -> int:
        """Let an engine that was built for it keep part of its weights in host memory, and return the bytes it keeps on
        the device: all that TensorRT holds sensible with the memory free now. Before it has a context.
        """
        if engine.streamable_weights_size <= 0:
            return 0
        budget: int = engine.get_weight_streaming_automatic_budget()
        engine.weight_streaming_budget_v2 = budget
        return budget

    def context_settings(self, engine: Any, kernels: KernelCache, *, specialized: bool) -> Any:
        """Return what contexts of an engine are made with: without memory of their own.

        Args:
            kernels: of TensorRT-RTX, which compiles them as shapes come.
            specialized: TensorRT-RTX compiles kernels for each shape before its first call, else one set for all. Never
                in the background: what is captured stays as it is, and the same call gives the same bits again.
        """
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.kind != "tensorrt-rtx":
            return strategy
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        strategies = self.module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if specialized else strategies.NONE
        kernels.attach(config)
        return config

    def context(self, engine: Any, settings: Any) -> Any:
        """Return a context made with ``context_settings``. Raises: BackendError in TensorRT's words."""
        self._errors.clear()
        context = engine.create_execution_context(settings)
        if context is None:
            raise BackendError(f"{self.kind} {self.version} makes no context: {self.words()}")
        return context

    def capturable(self, context: Any, stream: int) -> bool:
        """Return whether a call of a context can be captured, where this version knows before it tries."""
        asked = getattr(context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(stream))

    def register_plugin(self, name: str) -> list[str]:
        """Let engines be loaded that need a plugin of ours, from now on in this process. name: "" for those without.

        Returns: takes "target:hash", its first 16 digits, of every kernel that an engine brings when it is loaded.
        Raises: BackendError if there is no such plugin, or another of that name.
        """
        if name not in ("", frame_attention.NAME, recipe.OPERATOR):
            raise BackendError(f"the engines need the plugin {name!r}, which framert does not have; update framert")
        with self._lock:
            if name and not self._plugins:
                self._prepare_plugins()
            if name == frame_attention.NAME and name not in self._plugins:
                creator = _recording_creator(self.module, self._brought)
                if not self.module.get_plugin_registry().register_creator(creator, frame_attention.NAMESPACE):
                    raise BackendError(f"another plugin {name} is registered in this process; run in one of its own")
                self._plugins[name] = creator
            if name == recipe.OPERATOR and name not in self._plugins:
                path = os.environ.get(LIBRARY_VARIABLE, LIBRARY)
                handle = self.module.get_plugin_registry().load_library(path)
                if handle is None:
                    raise BackendError(
                        f"the engines need the plugin library {path}, and TensorRT cannot load it: {self.words()}; "
                        f"build it from kernels/plugin/cpp against TensorRT {self.version}, and name the file in "
                        f"{LIBRARY_VARIABLE}"
                    )
                self._plugins[name] = handle
        return self._brought

    def _prepare_plugins(self) -> None:
        if self.kind != "tensorrt-rtx":
            return
        from framert.kernels.plugin.soname import add_name

        libraries = find_spec("tensorrt_rtx_libs")
        if libraries is not None and libraries.origin is not None:
            found = sorted(Path(libraries.origin).parent.glob("libtensorrt_rtx.so.*"))
            if found:
                add_name(found[-1], "libtensorrt_rtx.so")

    def clear(self) -> None:
        """Forget the errors so far."""
        self._errors.clear()

    def words(self) -> str:
        """Return the first errors since ``clear`` in one line."""
        lines = [" ".join(line.split()) for line in dict.fromkeys(self._errors)]
        telling = [line for line in lines if NO_DRIVER not in line]
        return "; ".join((telling or lines)[:3]) or "it gives no reason"


def _logger(module: Any, errors: list[str]) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]  # a class of whichever module is given
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, line: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                errors.append(line)

    return Logger()


def _recording_creator(module: Any, found: list[str]) -> Any:
    """Return the plugin's creator, which also notes in ``found`` the kernels that engines bring."""
    creator = frame_attention.creator(module)
    make = creator.create_plugin

    def create_plugin(name: str, given: Any, phase: Any) -> Any:
        plugin = make(name, given, phase)
        found.extend(f"{launch.target}:{launch.kernel_hash[:16]}" for launch in plugin.launches)
        return plugin

    creator.create_plugin = create_plugin
    return creator
