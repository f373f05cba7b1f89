"""TensorRT 10.3 to 11 and TensorRT-RTX 1.x behind one interface: everything in which they differ is in this file."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from framert.export.tensorrt.log import NO_DRIVER, Log
from framert.export.tensorrt.targets import Gpu, this_gpu
from framert.kernels.plugin.soname import add_name
from framert.runtime.errors import BackendError, ConfigError

# Flavour -> module, what installs it, oldest version whose strongly typed networks take these graphs.
FLAVOURS = {
    "tensorrt": ("tensorrt", "pip install 'framert[tensorrt]'; on a Jetson it comes with JetPack", (10, 3)),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'framert[tensorrt-rtx]'", (1, 3)),
}
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")  # of TensorRT-RTX 1.7


@cache
def load(flavour: str) -> "Api":
    """Return the API of a flavour, the same one every time: TensorRT keeps one logger and plugin registry per process.

    Raises: BackendError if the flavour is unknown, not installed, unusable or too old.
    """
    if flavour not in FLAVOURS:
        raise BackendError(f"unknown backend {flavour!r} to build for; choose one of {', '.join(FLAVOURS)}")
    name, remedy, oldest = FLAVOURS[flavour]
    try:
        module = import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # its libraries may be there and not load
        raise BackendError(f"backend {flavour!r} needs the package {name} ({error}); {remedy}") from error
    api = Api(flavour, module)
    if api.number < oldest:
        wanted = ".".join(map(str, oldest))
        raise BackendError(f"{name} {api.version} is too old; version {wanted} or newer is needed: {remedy}")
    return api


class Api:
    """One installed TensorRT. module: its Python package. version: as the package says; number: major and minor."""

    def __init__(self, flavour: str, module: Any) -> None:
        self.flavour = flavour
        self.module = module
        self.version: str = module.__version__
        major, minor = re.match(r"(\d+)\.(\d+)", self.version).groups()  # type: ignore[union-attr]  # always has both
        self.number = (int(major), int(minor))
        self.log = Log(module)

    @property
    def targets(self) -> tuple[str, ...]:
        """What this machine can build for: its own GPU, or with TensorRT-RTX a list that needs none."""
        if self.flavour == "tensorrt":
            gpu = this_gpu()
            return (gpu.target,) if gpu else ()
        names = self.module.ComputeCapability.__members__
        return tuple(f"sm_{name.removeprefix('SM')}" for name in names if re.fullmatch(r"SM\d+", name))

    def check_targets(self, targets: Sequence[str]) -> None:
        """Raises: BackendError for a target this machine cannot build for."""
        able = self.targets
        for target in targets:
            if target in able:
                continue
            if self.flavour == "tensorrt":
                here = f"this machine's is {able[0]}" if able else "this machine has none"
                other = ", or with --backend tensorrt-rtx" if target in RTX_TARGETS else ""
                raise BackendError(
                    f"backend 'tensorrt' builds on the GPU that it builds for: {target} was asked for, and {here}; "
                    f"build on the machine that has it{other}"
                )
            raise BackendError(
                f"TensorRT-RTX {self.version} does not build for {target}; it has {', '.join(able)}"
                "; --backend tensorrt builds on the machine that has it"
            )

    def prepare_plugins(self) -> None:
        """Make adding a plugin possible: TensorRT-RTX then opens itself under a name that its wheel lacks."""
        if self.flavour != "tensorrt-rtx":
            return
        libraries = find_spec("tensorrt_rtx_libs")
        if libraries is None or libraries.origin is None:
            return  # not from the wheel: a system installation has the link
        found = sorted(Path(libraries.origin).parent.glob("libtensorrt_rtx.so.*"))
        if found:
            add_name(found[-1], "libtensorrt_rtx.so")

    def plugin_module(self) -> Any:
        """Return the module of quickly deployable plugins. Raises: BackendError where this installation lacks it."""
        name, remedy, _ = FLAVOURS[self.flavour]
        try:
            return import_module(f"{name}.plugin")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(f"attention 'aot' needs {name}.plugin ({error}); {remedy}") from error

    def gpu(self) -> Gpu | None:
        """Return the GPU that engines are tuned on, if any."""
        return this_gpu() if self.flavour == "tensorrt" else None

    def builder(self) -> Any:
        return self.module.Builder(self.log.logger)

    def network(self, builder: Any) -> Any:
        """Return an empty network whose types are those of the graph, never chosen by the builder."""
        flags = self.module.NetworkDefinitionCreationFlag
        return builder.create_network(1 << int(flags.STRONGLY_TYPED))

    def parse(self, network: Any, model: Path, content: bytes | None = None) -> Any:
        """Fill a network from an ONNX file and return its parser, which must outlive the build.

        Args:
            model: the file; external weights are found beside it.
            content: the graph to parse instead of the file's own.
        Raises: BackendError that names the nodes TensorRT refuses.
        """
        parser = self.module.OnnxParser(network, self.log.logger)
        parser.set_flag(self.module.OnnxParserFlag.NATIVE_INSTANCENORM)
        self.log.clear()
        done = parser.parse_from_file(str(model)) if content is None else parser.parse(content, str(model))
        if not done:
            names = _node_names(model, content)
            errors = [_parser_error(parser.get_error(index), names) for index in range(parser.num_errors)]
            raise BackendError(
                f"{self.flavour} {self.version} cannot parse {model.name}: "
                + ("; ".join(dict.fromkeys(errors)) or self.log.errors_in_words())
            )
        self.log.tell_errors()
        return parser

    def missing_operators(self, names: Iterable[str]) -> list[str]:
        """Return those ONNX operators that this version's parser does not know."""
        parser = self.module.OnnxParser(self.network(self.builder()), self.log.logger)
        return [name for name in names if not parser.supports_operator(name)]

    def config(self, builder: Any, targets: Sequence[str], *, weight_streaming: bool, compatible: str) -> Any:
        """Return a builder configuration.

        Args:
            targets: checked by ``check_targets``.
            weight_streaming: keep weights in host memory and stream them where the device's is too small.
            compatible: "none"; "version" for engines that later releases of the major version run; "ampere+" for
                engines that every GPU from Ampere on runs.
        Raises: ConfigError if this version has not what is asked for.
        """
        trt = self.module
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32; TF32 would round products to 11 bits
        if self.flavour == "tensorrt-rtx":
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                capability = getattr(trt.ComputeCapability, target.replace("sm_", "SM"))
                if not config.set_compute_capability(capability, index):
                    raise BackendError(f"TensorRT-RTX {self.version} refuses to build for {' and '.join(targets)}")
            if not weight_streaming:  # which allocates by itself
                # Or a call may allocate memory of its own, and cannot be captured in a CUDA graph.
                config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        if compatible != "none":
            if compatible not in ("version", "ampere+"):
                raise ConfigError(f"compatible is {compatible!r}; choose one of none, version, ampere+")
            if self.flavour == "tensorrt-rtx":
                raise ConfigError(
                    f"TensorRT-RTX {self.version} has no {compatible!r} compatibility without a GPU; "
                    "name several --target instead"
                )
            if compatible == "version":
                config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            else:
                config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return config

    @property
    def has_timing_cache(self) -> bool:
        """TensorRT-RTX measures no tactic at build time; its timing-cache calls are deprecated no-ops."""
        return self.flavour == "tensorrt"

    def build(self, builder: Any, network: Any, config: Any, output: Path) -> None:
        """Write the engine. Raises: BackendError with the builder's own errors; OSError if it cannot be written."""
        self.log.clear()
        streams = hasattr(builder, "build_serialized_network_to_stream")  # from 10.13 on: half the memory
        with output.open("wb") as file:
            if streams:
                done = builder.build_serialized_network_to_stream(network, config, _writer(self.module, file))
            else:
                engine = builder.build_serialized_network(network, config)
                done = engine is not None
                if done:
                    file.write(engine)
        if not done or not output.stat().st_size:
            raise BackendError(
                f"{self.flavour} {self.version} cannot build {output.stem}: {self.log.errors_in_words()}"
            )


def _parser_error(error: Any, names: Sequence[str]) -> str:
    """Return what failed: node, operator, reason. names: of the graph's nodes, for operators inside a function."""
    lines = [line for line in error.desc().splitlines() if NO_DRIVER not in line]
    reason = " ".join(" ".join(lines).split())
    reason = reason if reason not in ("", "false") else f"not supported ({error.func()})"
    index = error.node()
    name = error.node_name() or (names[index] if 0 <= index < len(names) else f"number {index}")
    return f"node {name} ({error.node_operator()}): {reason}"


def _node_names(model: Path, content: bytes | None) -> list[str]:
    try:
        proto = onnx.load(model, load_external_data=False) if content is None else onnx.load_from_string(content)
    except Exception:  # protobuf's own: not a graph at all
        return []
    return [node.name for node in proto.graph.node]


def _writer(module: Any, file: Any) -> Any:
    class Writer(module.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            written: int = file.write(data)
            return written

    return Writer()
