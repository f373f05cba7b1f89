"""fp32 graph -> half precision graph, by the rule of automatic mixed precision: products in half, what reduces in fp32.

Products (matrix, convolution, attention) read and write half. Norms, softmax and what is exponentiated stay in fp32.
Quantized values are dequantized to half, so that their products are half as well.
Everything between takes its type from its inputs, fp32 if they differ. So weights and products take half the room while
sums over many layers keep their digits, and no type is ever mixed within an operator, which TensorRT refuses.
The graph's inputs and outputs keep their types.
"""

from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from framert.export.weights import Array, Weight
from framert.runtime.errors import ConfigError

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "FrameAttention", "DequantizeLinear"}
EXACT = {
    "RMSNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "LogSoftmax",
    "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "ReduceMean", "ReduceSum", "CumSum", "Range", "Cast",
    "ConstantOfShape", "Constant",
}  # fmt: skip
# Operators of whose inputs only some are values; the others keep their types. FrameAttention's gate is always fp32.
VALUES = {"Resize": (0,), "FrameAttention": (0, 1, 2, 5, 6)}
FLOAT = ir.DataType.FLOAT
MOST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 2.0**128 - 2.0**120}  # the largest numbers


def cast(model: ir.Model, weights: Mapping[str, Weight], precision: str) -> dict[str, Weight]:
    """Change a graph to half precision.

    Args:
        model: changed in place.
        weights: the graph's weights by name, which are in no list of the graph.
        precision: "fp16" or "bf16".
    Returns: the weights of the new graph.
    Raises: ConfigError for another precision.
    """
    if precision not in TYPES:
        raise ConfigError(f"precision is {precision!r}; choose one of {', '.join(TYPES)}")
    return _Cast(model.graph, weights, TYPES[precision]).run()


class _Cast:
    def __init__(self, graph: ir.Graph, weights: Mapping[str, Weight], half: ir.DataType) -> None:
        self.graph = graph
        self.weights = weights
        self.half = half
        self.typed: dict[tuple[str, ir.DataType], ir.Value] = {}  # one cast of each value to each type
        self.result: dict[str, Weight] = {}

    def run(self) -> dict[str, Weight]:
        for node in list(self.graph):
            places = [
                place
                for place, value in enumerate(node.inputs)
                if value is not None and place in VALUES.get(node.op_type, range(len(node.inputs)))
            ]
            wanted = self._type(node, places)
            for place in places:
                value = node.inputs[place]
                assert value is not None
                if value.dtype in (FLOAT, self.half):
                    node.replace_input_with(place, self._as(value, wanted, node))
            if node.op_type not in EXACT:
                for value in node.outputs:
                    if value.dtype is FLOAT:
                        value.dtype = wanted
            for value in node.inputs:  # weights that no cast concerns: integers, and values that keep their types
                if value is not None and value.name in self.weights:
                    self.result.setdefault(str(value.name), self.weights[str(value.name)])
        for index, value in enumerate(self.graph.outputs):
            if value.dtype is self.half:
                self.graph.outputs[index] = self._output(value)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
        return self.result

    def _type(self, node: ir.Node, places: list[int]) -> ir.DataType:
        if node.op_type in PRODUCTS:
            return self.half
        if node.op_type in EXACT:
            return FLOAT
        given = [
            value.dtype
            for place in places
            if (value := node.inputs[place]) is not None
            and value.dtype in (FLOAT, self.half)
            and value.name not in self.weights
            and value.const_value is None
        ]
        return self.half if given and all(dtype is self.half for dtype in given) else FLOAT

    def _as(self, value: ir.Value, dtype: ir.DataType, node: ir.Node) -> ir.Value:
        """Return a float value in a type: a weight or constant of that type, or the output of a cast."""
        if value.dtype is dtype and value.name not in self.weights:
            return value
        key = (str(value.name), dtype)
        if key not in self.typed:
            self.typed[key] = self._make(value, dtype, node)
        return self.typed[key]

    def _make(self, value: ir.Value, dtype: ir.DataType, node: ir.Node) -> ir.Value:
        name = str(value.name)
        made_name = name if dtype is value.dtype else f"{name}_{dtype.name.lower()}"
        if name in self.weights:
            weight = self.weights[name]
            self.result[made_name] = weight if dtype is FLOAT else _rounded(weight, dtype)
            return ir.Value(name=made_name, shape=value.shape, type=ir.TensorType(dtype))
        if value.const_value is not None:
            array = _bounded(value.const_value.numpy(), dtype).astype(dtype.numpy())
            tensor = ir.tensor(array, dtype=dtype, name=made_name)
            made = ir.Value(name=made_name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
            self.graph.register_initializer(made)
            return made
        caster = ir.node("Cast", [value], {"to": dtype.value}, name=f"{made_name}_cast")
        made = caster.outputs[0]
        made.name, made.shape, made.type = made_name, value.shape, ir.TensorType(dtype)
        self.graph.insert_before(node, caster)
        return made

    def _output(self, value: ir.Value) -> ir.Value:
        """Return an fp32 output under the name of a half one."""
        name = str(value.name)
        value.name = f"{name}_{self.half.name.lower()}_output"
        caster = ir.node("Cast", [value], {"to": FLOAT.value}, name=f"{name}_cast")
        made = caster.outputs[0]
        made.name, made.shape, made.type = name, value.shape, ir.TensorType(FLOAT)
        self.graph.append(caster)
        return made


def _bounded(values: Array, dtype: ir.DataType) -> Array:
    """Return values within what a half type holds: a mask's lowest number of fp32 stays a number in either."""
    return values.clip(-MOST[dtype], MOST[dtype]) if dtype in MOST else values


def _rounded(weight: Weight, dtype: ir.DataType) -> Weight:
    """Return the weight rounded to nearest; its values are the bits, as ``Weight`` stores types that numpy lacks."""

    def read() -> Array:
        values = _bounded(weight.read(), dtype)
        if dtype is ir.DataType.FLOAT16:
            return values.astype(np.float16)
        return values.astype(ml_dtypes.bfloat16).view(np.uint16)

    return replace(weight, read=read, type=dtype.value)
