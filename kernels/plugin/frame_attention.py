"""FrameAttention as a TensorRT plugin in Python: launches the ahead-of-time kernel that lies inside the engine.

Works from TensorRT 10.3 on and with TensorRT-RTX. The engine then needs this creator registered where it is run, and
Python there. ``creator`` makes it for building, with kernels, and for running, without.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from framert.kernels.plugin.driver import Driver
from framert.kernels.plugin.launch import Launch, pack, unpack
from framert.runtime.errors import BackendError

NAME, VERSION, NAMESPACE = "FrameAttention", "1", "framert"
INPUTS = (
    "query", "key", "value", "q_range", "kv_range", "text_k", "text_v", "text_range", "gate",
)  # fmt: skip
OWN = INPUTS[:5]  # of attention without text, which ends there
SCALARS = ("softcap", "scale")
EMPTY = np.zeros(0, np.int8)
RANGES = {"q_range", "kv_range", "text_range"}
# Type of the packed tensors -> what the kernel's pointers to them are called.
KINDS = {"HALF": "*fp16", "BF16": "*bf16", "FLOAT": "*fp32"}


def creator(trt: Any, launches: Sequence[Launch] = ()) -> Any:
    """Return a creator to register with ``trt.get_plugin_registry()``; keep it for as long as it is registered.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        launches: kernels for the targets that are built for; engines that are only run bring theirs.
    """
    plugin_class = _plugin_class(trt)
    fields = [trt.PluginField(name, np.zeros(1, np.float32), trt.PluginFieldType.FLOAT32) for name in SCALARS]
    fields.append(trt.PluginField("kernels", np.zeros(1, np.int8), trt.PluginFieldType.INT8))

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]  # a class of whichever module is given
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.field_names = trt.PluginFieldCollection(fields)

        def create_plugin(self, name: str, given: Any, phase: Any) -> Any:
            """Make the plugin of an ONNX node (phase BUILD) or of a serialized engine (RUNTIME)."""
            values = {field.name: np.asarray(field.data) for field in given}
            missing = [scalar for scalar in SCALARS if scalar not in values]
            if missing:
                raise BackendError(f"the node {name} of {NAME} lacks {', '.join(missing)}")
            held = unpack(values["kernels"].tobytes()) if values.get("kernels", EMPTY).size > 1 else list(launches)
            return plugin_class({scalar: float(values[scalar].reshape(-1)[0]) for scalar in SCALARS}, held)

    return Creator()


def inputs_of(launch: Launch) -> tuple[str, ...]:
    """Return the names of the inputs that a kernel was compiled for, in order."""
    return INPUTS if launch.constants.get("TEXT", True) else OWN


def kernel_values(inputs: Sequence[Sequence[Any]], pointers: Sequence[Any], output: Any) -> dict[str, Any]:
    """Return the kernel's arguments by name, from the inputs' shapes, their addresses and the output's.

    Sizes are whole numbers, or whatever else multiplies. Without text its strides are 0: nothing reads them.
    """
    names = INPUTS if len(inputs) == len(INPUTS) else OWN
    shapes = dict(zip(names, inputs, strict=True))
    values = {f"{name}_ptr": pointer for name, pointer in zip(names, pointers, strict=True)}
    packed = ("query", "key", "value", "text_k", "text_v")
    rows = {name: shapes[name][1] * shapes[name][2] if name in shapes else 0 for name in packed}
    return {
        **values,
        "tokens": shapes["query"][0],
        "sequences": shapes["q_range"][0],
        **{f"{name}_stride": row for name, row in rows.items()},  # dense: TensorRT gives linear tensors
        "out_stride": rows["query"],
        "out_ptr": output,
    }


def supported(trt: Any, position: int, descriptions: Sequence[Any], launches: Sequence[Launch]) -> bool:
    """Return whether a tensor's type and format are what the kernels take. position: inputs in order, then the output.

    All packed tensors have one type; ranges are int32 and the gate is fp32.
    """
    name = INPUTS[position] if position < len(descriptions) - 1 else "query"
    this = descriptions[position].desc
    if this.format != trt.TensorFormat.LINEAR:
        return False
    if name in RANGES:
        return bool(this.type == trt.int32)
    if name == "gate":
        return bool(this.type == trt.float32)
    kinds = {dict(launch.arguments)["query_ptr"] for launch in launches}
    return this.type == descriptions[0].desc.type and KINDS.get(this.type.name) in kinds


def check(launches: Sequence[Launch], scalars: dict[str, float], heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises: BackendError if the kernels were compiled for another attention than the node's."""
    for launch in launches:
        constants = launch.constants
        compiled = (constants["HEADS"], constants["KV_HEADS"], constants["HEAD_DIM"])
        same = np.allclose(
            (constants["SOFTCAP"], constants["SCALE"]), (scalars["softcap"], scalars["scale"]), rtol=1e-6
        )
        if compiled != (heads, kv_heads, head_dim) or not same:
            raise BackendError(
                f"the kernel {launch.entry} is for {compiled[0]} heads on {compiled[1]} of {compiled[2]}, softcap "
                f"{constants['SOFTCAP']:g} and scale {constants['SCALE']:g}; the node has {heads} on {kv_heads} of "
                f"{head_dim}, {scalars['softcap']:g} and {scalars['scale']:g}"
            )


def _plugin_class(trt: Any) -> Any:
    bases: Any = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    # Every layer of every execution context has a plugin of its own, and all of them have the same kernel.
    loaded: dict[tuple[int, str, bytes], Any] = {}

    class Plugin(*bases):  # type: ignore[misc]
        def __init__(self, scalars: dict[str, float], launches: list[Launch]) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.num_outputs = 1
            self.scalars, self.launches = scalars, launches
            self.driver: Driver | None = None
            self.kernel: tuple[Launch, Any] | None = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self.scalars, self.launches)

        # build

        def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
            return [types[0]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            return [inputs[0]]

        def supports_format_combination(self, position: int, descriptions: Sequence[Any], inputs: int) -> bool:
            return supported(trt, position, descriptions, self.launches)

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            _, heads, head_dim = inputs[0].desc.dims
            check(self.launches, self.scalars, heads, inputs[1].desc.dims[1], head_dim)

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        # run

        def get_fields_to_serialize(self) -> Any:
            fields = [
                trt.PluginField(name, np.array([value], np.float32), trt.PluginFieldType.FLOAT32)
                for name, value in self.scalars.items()
            ]
            content = np.frombuffer(pack(self.launches), np.int8)
            fields.append(trt.PluginField("kernels", content, trt.PluginFieldType.INT8))
            return trt.PluginFieldCollection(fields)

        def set_tactic(self, tactic: int) -> None:
            pass

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(
            self,
            inputs: Sequence[Any],
            outputs: Sequence[Any],
            input_pointers: Sequence[int],
            output_pointers: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            # Not while a CUDA graph is captured: TensorRT asks for one call before that, and it ends up here.
            if self.driver is None or self.kernel is None:
                self.driver = Driver()
                launch = self._chosen(self.driver.target())
                key = self.driver.context(), launch.entry, launch.image
                if key not in loaded:
                    loaded[key] = self.driver.load(launch)
                self.kernel = launch, loaded[key]
            launch, function = self.kernel
            values = kernel_values([one.dims for one in inputs], input_pointers, output_pointers[0])
            numbers = {name: value for name, value in values.items() if not name.endswith("_ptr")}
            self.driver.launch(function, launch, launch.blocks(numbers), launch.parameters(values), stream)

        def _chosen(self, target: str) -> Launch:
            for launch in self.launches:
                if launch.target == target:
                    return launch
            held = ", ".join(launch.target for launch in self.launches)
            raise BackendError(f"the engine holds kernels for {held}, and this GPU is {target}; build it for that")

    return Plugin
