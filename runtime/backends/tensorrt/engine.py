"""One engine with its weights on the device, and calls of it: a context with shapes and addresses of their own."""

from collections.abc import Mapping
from typing import Any

from framert.runtime.backends.tensorrt.fit import check_kernels, for_other_versions
from framert.runtime.backends.tensorrt.kernel_cache import KernelCache, file_name
from framert.runtime.backends.tensorrt.library import Library
from framert.runtime.backends.tensorrt.memory import Activations
from framert.runtime.backends.tensorrt.profiles import Profiles
from framert.runtime.backends.tensorrt.rebuild import rebuild_command
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.manifest import TensorSpec

# TensorRT's name of a type -> the manifest's.
TYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
    "INT8": "int8",
}  # fmt: skip
VARYING = ("text_encoder", "conditioner")  # every prompt has a length of its own, and these graphs are cheap


class LoadedEngine:
    """The engine of one graph. size: bytes of the block it computes in, for its largest profile.

    Args:
        brought: where the library notes the kernels of plugins. gpu: name of the device.
    Raises: BackendError if TensorRT refuses the file, or it is not the engine that the manifest describes.
    """

    def __init__(
        self, bundle: Bundle, graph: str, library: Library, profiles: Profiles, brought: list[str], gpu: str
    ) -> None:
        self.graph = graph
        self.spec = bundle.manifest.graphs[graph]
        self.profiles = profiles
        self._library = library
        with library.loading:
            brought.clear()
            try:
                self._engine = library.engine(bundle.graph_path(graph), host_code=for_other_versions(bundle))
            except BackendError as error:
                check_kernels(bundle, graph, brought)
                raise BackendError(f"{error}; {rebuild_command(bundle)}") from error
            check_kernels(bundle, graph, brought)
        if reason := self._difference():
            raise BackendError(f"{bundle.graph_path(graph)} is another engine ({reason}); {rebuild_command(bundle)}")
        self.streamed = library.stream_weights(self._engine)
        self.size = int(self._engine.device_memory_size_v2)
        digest = bundle.manifest.files[self.spec.files[0]].sha256
        self._kernels = KernelCache(file_name(graph, digest, gpu, library.version))
        self._settings = library.context_settings(self._engine, self._kernels, specialized=graph not in VARYING)
        self._met: set[Any] = set()

    def context(self) -> Any:
        return self._library.context(self._engine, self._settings)

    def meets(self, shapes: Any) -> None:
        """Keep the kernels that were compiled for shapes which a call ran with for the first time."""
        if self._library.kind == "tensorrt-rtx" and shapes not in self._met:
            self._met.add(shapes)
            self._kernels.store()

    def _difference(self) -> str:
        """Return how the engine differs from what manifest and profiles say of it, "" if it does not."""
        trt, engine = self._library.module, self._engine
        found: dict[bool, dict[str, str]] = {True: {}, False: {}}  # by whether it is an input
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                return f"{name} is not on the device"
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = tuple(size for size in engine.get_tensor_shape(name) if size >= 0)
            found[given][name] = _text(TYPES.get(engine.get_tensor_dtype(name).name, "?"), shape if given else ())
        # Sizes of outputs follow from those of inputs, and TensorRT may know them where we do not.
        wanted = {
            True: {name: _text(spec.dtype, _fixed(spec)) for name, spec in self.spec.inputs.items()},
            False: {name: _text(spec.dtype, ()) for name, spec in self.spec.outputs.items()},
        }
        for given in (True, False):
            if odd := sorted(set(wanted[given].items()) ^ set(found[given].items())):
                return f"{odd[0][0]} is {found[given].get(odd[0][0], 'missing')}"
        table = self.profiles.of(self.graph)
        if engine.num_optimization_profiles != len(table):
            return f"it has {engine.num_optimization_profiles} profiles, not {len(table)}"
        for number, profile in enumerate(table):
            for name, spec in self.spec.inputs.items():
                if not any(isinstance(size, str) for size in spec.shape):
                    continue
                for place, shape in enumerate(engine.get_tensor_profile_shape(name, number)):
                    said = tuple(profile[size][place] if isinstance(size, str) else size for size in spec.shape)
                    if tuple(shape) != said:
                        return f"profile {number} of {name} is {tuple(shape)}, not {said}"
        return ""


class Call:
    """One way to call an engine: a profile, input shapes, and the addresses of all inputs and outputs.

    Each has a context of its own: a graph that was captured holds for as long as nothing of its context changes.
    """

    def __init__(self, engine: LoadedEngine, library: Library, activations: Activations, stream: int) -> None:
        self._engine, self._library = engine, library
        self._activations, self._stream = activations, stream
        self._context = engine.context()
        self._profile: int | None = None
        self._shapes: Any = None
        self._block = 0

    def shape(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Choose a profile and the shape of every input. Raises: BackendError if the engine does not take them."""
        self._library.clear()
        context = self._context
        if profile != self._profile:
            self._take(context.set_optimization_profile_async(profile, self._stream), f"profile {profile}")
            self._profile = profile
        for name, shape in shapes.items():
            self._take(context.set_input_shape(name, tuple(shape)), f"{name} of shape {tuple(shape)}")
        self._shapes = (profile, *sorted(shapes.items()))

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Return what the input shapes make of an output's."""
        return tuple(int(size) for size in self._context.get_tensor_shape(name))

    def address(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs are read and outputs written."""
        for name, address in addresses.items():
            self._take(self._context.set_tensor_address(name, address), f"the address of {name}")

    def queue(self) -> None:
        """Start the call, behind what is queued. Raises: BackendError in TensorRT's words."""
        self._library.clear()
        if self._block != self._activations.address:
            self._block = self._activations.address
            self._context.set_device_memory(self._block, self._activations.size)
        if missing := self._context.infer_shapes():
            raise BackendError(f"{self._engine.graph} lacks shapes or addresses of {', '.join(missing)}")
        self._take(self._context.execute_async_v3(self._stream), "the call")
        self._engine.meets(self._shapes)

    @property
    def capturable(self) -> bool:
        return self._library.capturable(self._context, self._stream)

    def _take(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"the engine of {self._engine.graph} refuses {what}: {self._library.words()}")


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if not isinstance(size, str))


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return " ".join((dtype, "x".join(map(str, shape)))).strip()
