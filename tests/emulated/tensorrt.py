"""TensorRT over the emulated driver: engines are profiles and an ONNX graph, which ONNX Runtime computes.

As the real one: shapes outside the profile, missing addresses and missing memory are refused; a call reads its inputs
and writes its outputs when the stream comes to it, at the addresses it was queued with; engines scribble over the block
they compute in; a captured call whose context was changed since gives nonsense. ``write`` makes an engine's file.
"""

import ctypes
import json
import struct
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

MAGIC = b"EMULATED"
ONNX = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.INT32: "INT32", onnx.TensorProto.INT64: "INT64"}
NUMPY = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64}
BLOCK = 4096  # bytes that an engine computes in, times its number


def write(
    model: bytes,
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]],
    *,
    version: str,
    capabilities: Sequence[str],
    size: int = BLOCK,
    kernels: bytes = b"",
    streamable: int = 0,
    host_code: bool = False,
) -> bytes:
    """Return an engine's file.

    Args:
        profiles: input -> least, best and most shape, of each profile.
        kernels: what its plugins were serialized with; empty for an engine without plugins.
        host_code: it runs in later versions, by code of its own.
    """
    head = {
        "version": version,
        "capabilities": list(capabilities),
        "profiles": [dict(profile) for profile in profiles],
        "size": size,
        "streamable": streamable,
        "host_code": host_code,
        "kernels": kernels.hex(),
    }
    text = json.dumps(head).encode()
    return MAGIC + struct.pack("<QQ", len(text), len(model)) + text + model


class Trt:
    """Stands in for the module tensorrt, or with ``rtx`` tensorrt_rtx, on an emulated device."""

    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    TensorLocation = Enum("TensorLocation", "DEVICE HOST")
    ExecutionContextAllocationStrategy = Enum(
        "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
    )
    DataType = Enum("DataType", "FLOAT HALF BF16 INT32 INT64 BOOL INT8")
    DynamicShapesKernelSpecializationStrategy = Enum("Kernels", "LAZY EAGER NONE")
    PluginFieldType = Enum("PluginFieldType", "FLOAT32 INT8 INT32")
    TensorRTPhase = Enum("TensorRTPhase", "BUILD RUNTIME")

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class IPluginCreatorV3One:
        pass

    class IPluginV3:
        pass

    class IPluginV3OneCore:
        pass

    class IPluginV3OneBuild:
        pass

    class IPluginV3OneRuntime:
        pass

    def __init__(self, cuda: Any, version: str = "10.13.3.9", *, rtx: bool = False, capturable: bool = True) -> None:
        self.cuda, self.rtx, self.capturable = cuda, rtx, capturable
        self.__version__ = version
        self.creators: dict[tuple[str, str], Any] = {}
        self.libraries: list[str] = []  # loaded
        self.engines = 0  # alive
        self.most_engines = 0
        self.contexts = 0  # made
        self.compiled = 0  # shapes that kernels were compiled for
        self.calls: list[tuple[str, int, dict[str, tuple[int, ...]]]] = []  # queued: graph, profile, shapes

    def get_plugin_registry(self) -> Any:
        def register_creator(creator: Any, namespace: str) -> bool:
            key = (namespace, creator.name)
            return self.creators.setdefault(key, creator) is creator

        def load_library(path: str) -> str | None:
            if not Path(path).is_file():
                return None
            self.libraries.append(path)
            return path

        return SimpleNamespace(register_creator=register_creator, load_library=load_library)

    @staticmethod
    def PluginField(name: str, data: Any = None, kind: Any = None) -> Any:
        return SimpleNamespace(name=name, data=data, type=kind)

    @staticmethod
    def PluginFieldCollection(fields: Sequence[Any]) -> list[Any]:
        return list(fields)

    def Runtime(self, logger: Any) -> "_Runtime":
        return _Runtime(self, logger)


class _Runtime:
    def __init__(self, trt: Trt, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, buffer: Any) -> "Engine | None":
        content = bytes(buffer)
        if content[: len(MAGIC)] != MAGIC:
            return self._refuse("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed")
        head_size, model_size = struct.unpack_from("<QQ", content, len(MAGIC))
        begin = len(MAGIC) + 16
        if len(content) != begin + head_size + model_size:
            return self._refuse("the engine is truncated")
        head = json.loads(content[begin : begin + head_size])
        later = head["host_code"] and [head["version"], self.trt.__version__] == sorted(
            (head["version"], self.trt.__version__)
        )
        if head["version"] != self.trt.__version__ and not later:
            return self._refuse(f"expecting library version {head['version']} got {self.trt.__version__}")
        if "sm_{}{}".format(*self.trt.cuda.capability) not in head["capabilities"]:
            return self._refuse("the engine was made for another device")
        if head["host_code"] and not self.engine_host_code_allowed:
            return self._refuse("the engine holds host code, which is not allowed")
        if head["kernels"]:
            creator = self.trt.creators.get(("framert", "FrameAttention"))
            if creator is None:
                return self._refuse("Cannot find plugin: FrameAttention, version: 1, namespace: framert")
            field = self.trt.PluginField
            given = [field("softcap", np.array([30.0], np.float32)), field("scale", np.array([0.1], np.float32)),
                     field("kernels", np.frombuffer(bytes.fromhex(head["kernels"]), np.int8))]  # fmt: skip
            try:
                creator.create_plugin("", given, self.trt.TensorRTPhase.RUNTIME)
            except Exception as error:  # as TensorRT's bindings do
                return self._refuse(f"Exception caught in create_plugin(): {error}")
        return Engine(self.trt, self.logger, head, content[begin + head_size :])

    def _refuse(self, line: str) -> None:
        self.logger.log(self.trt.ILogger.Severity.ERROR, line)


class Engine:
    def __init__(self, trt: Trt, logger: Any, head: Mapping[str, Any], model: bytes) -> None:
        self.trt, self.logger, self.head = trt, logger, head
        self.name, self.inputs, self.outputs, self.session = _parsed(model)
        self.device_memory_size_v2 = head["size"]
        self.num_optimization_profiles = len(head["profiles"])
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.streamable_weights_size = head["streamable"]
        self.budget: int | None = None
        self.made: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        trt.engines += 1
        trt.most_engines = max(trt.most_engines, trt.engines)

    def __del__(self) -> None:
        self.trt.engines -= 1

    @property
    def weight_streaming_budget_v2(self) -> int | None:
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value: int) -> None:
        self.budget = value

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.head["streamable"] // 2

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[(self.inputs | self.outputs)[name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in (self.inputs | self.outputs)[name][1])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.head["profiles"][profile][name]]

    def create_runtime_config(self) -> Any:
        assert self.trt.rtx
        config = SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=None, strategy=None, cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.create_runtime_cache = lambda: RuntimeCache(self.trt.__version__)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, given: Any) -> "Context":
        strategy = given.strategy if self.trt.rtx else given
        assert strategy is self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.trt.rtx:
            return Context(self, None, specialized=False)
        kernels = given.dynamic_shapes_kernel_specialization_strategy.name
        assert kernels in ("EAGER", "NONE")
        return Context(self, given.cache, specialized=kernels == "EAGER")

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        key = tuple(sorted(shapes.items()))
        if key not in self.made:
            zeros = {name: np.zeros(shape, NUMPY[self.inputs[name][0]]) for name, shape in shapes.items()}
            known = {size: n for name in shapes for size, n in zip(self.inputs[name][1], shapes[name], strict=True)}
            if all(isinstance(size, int) or size in known for _, spec in self.outputs.values() for size in spec):
                found = {n: tuple(known.get(size, size) for size in spec) for n, (_, spec) in self.outputs.items()}
            else:
                values = self.session.run(list(self.outputs), zeros)
                found = {name: value.shape for name, value in zip(self.outputs, values, strict=True)}
            self.made[key] = found
        return self.made[key]


class RuntimeCache:
    """Kernels by the shapes they were compiled for."""

    def __init__(self, version: str) -> None:
        self.version, self.shapes = version, set[str]()

    def serialize(self) -> bytes:
        return json.dumps([self.version, sorted(self.shapes)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            version, shapes = json.loads(blob)
        except ValueError:
            return False
        if version == self.version:
            self.shapes = set(shapes)
        return bool(version == self.version)


class Context:
    def __init__(self, engine: Engine, cache: RuntimeCache | None, *, specialized: bool) -> None:
        self.engine, self.cache, self.specialized = engine, cache, specialized
        self.profile: int | None = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.block = (0, 0)
        self.changes = 0  # of anything a captured graph depends on
        engine.trt.contexts += 1

    def _refuse(self, line: str) -> bool:
        self.engine.logger.log(self.engine.trt.ILogger.Severity.ERROR, line)
        return False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if not 0 <= profile < self.engine.num_optimization_profiles:
            return self._refuse("profile out of range")
        self.profile, self.shapes, self.changes = profile, {}, self.changes + 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine.inputs:
            return self._refuse(f"no input {name}")
        _dtype, spec = self.engine.inputs[name]
        if len(shape) != len(spec):
            return self._refuse(f"{name} has {len(spec)} axes")
        limits = self.engine.head["profiles"][self.profile].get(name)
        for axis, size in enumerate(shape):
            least, most = (limits[0][axis], limits[2][axis]) if limits else (spec[axis], spec[axis])
            if not least <= size <= most:
                return self._refuse(f"Set dimension [{size}] for tensor {name} does not satisfy [{least}, {most}]")
        if self.shapes.get(name) != tuple(shape):
            self.shapes[name] = tuple(shape)
            self.changes += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.inputs and name not in self.engine.outputs:
            return self._refuse(f"no tensor {name}")
        if self.addresses.get(name) != address:
            self.addresses[name] = address
            self.changes += 1
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2, "too little memory for the engine"
        self.block = (address, size)
        self.changes += 1

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.output_shapes(self.shapes)[name]

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def __getattr__(self, name: str) -> Any:
        if name == "is_stream_capturable" and self.engine.trt.rtx:
            return lambda stream: self.engine.trt.capturable
        raise AttributeError(name)

    def execute_async_v3(self, stream: int) -> bool:
        trt, engine = self.engine.trt, self.engine
        for name in (*engine.inputs, *engine.outputs):
            if not self.addresses.get(name):
                return self._refuse(f"Address is not set for {name}")
        if not self.block[0]:
            return self._refuse("the context has no device memory")
        if trt.cuda.streams[stream].captured is not None and not trt.capturable:
            trt.cuda.streams[stream].broken = True
            return self._refuse("operation not permitted when stream is capturing")
        shapes, addresses, block = dict(self.shapes), dict(self.addresses), self.block
        outputs = engine.output_shapes(shapes)
        captured = trt.cuda.streams[stream].captured is not None
        kernels = str(shapes) if self.specialized else "any"
        if self.cache is not None and kernels not in self.cache.shapes:
            assert not captured, "kernels are compiled in the first call of a shape"
            trt.compiled += 1
            self.cache.shapes.add(kernels)
        changes = self.changes if captured else None
        trt.calls.append((engine.name, self.profile, shapes))

        def work() -> None:
            check = trt.cuda.check
            feeds = {}
            for name, shape in shapes.items():
                dtype = np.dtype(NUMPY[engine.inputs[name][0]])
                size = int(np.prod(shape)) * dtype.itemsize
                content = ctypes.string_at(check(addresses[name], size), size)
                feeds[name] = np.frombuffer(content, dtype).reshape(shape)
            ctypes.memset(check(block[0], engine.device_memory_size_v2), 0xAB, engine.device_memory_size_v2)
            for name, value in zip(engine.outputs, self._run(feeds, outputs, changes), strict=True):
                assert value.shape == outputs[name]
                made = np.ascontiguousarray(value)
                ctypes.memmove(check(addresses[name], made.nbytes), made.ctypes.data, made.nbytes)

        return not trt.cuda.put(stream, work)

    def _run(self, feeds: Any, outputs: Mapping[str, tuple[int, ...]], changes: int | None) -> list[Any]:
        if changes not in (None, self.changes):  # the context was changed behind a captured graph
            return [np.full(outputs[name], np.nan, np.float32) for name in self.engine.outputs]
        return self.engine.session.run(list(self.engine.outputs), feeds)


@lru_cache(maxsize=32)
def _parsed(model: bytes) -> tuple[str, dict[str, Any], dict[str, Any], Any]:
    """Return the name of a graph, its inputs and outputs, and its session; the same for all engines of one file."""
    graph = onnx.load_from_string(model).graph
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    sides = [{value.name: _described(value) for value in values} for values in (graph.input, graph.output)]
    return graph.name, sides[0], sides[1], session


def _described(value: Any) -> tuple[str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return ONNX[tensor.elem_type], shape


Trt.context_class = Context
