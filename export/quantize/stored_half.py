"""Weights stored in fp16 and widened to fp32 when the graph is loaded: half the file, all arithmetic in fp32."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from framert.export.weights import Array, Weight
from framert.runtime.errors import ConfigError

SMALL = 1024  # values: below it a weight stays as it is, biases and norms above all
FLOAT = ir.DataType.FLOAT


def store_half(graph: ir.Graph, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Put a Cast behind every large weight of a graph.

    Args:
        weights: all weights of the graph, by the name of their value.
    Returns: the weights of the new graph. Reading one raises ConfigError if fp16 does not hold it.
    """
    result = dict(weights)
    values = {
        str(value.name): value
        for node in graph
        for value in node.inputs
        if value is not None and value.name in weights
    }  # fmt: skip
    first = graph[0]
    for name, value in values.items():
        weight = weights[name]
        if weight.type != onnx.TensorProto.FLOAT or np.prod(weight.shape) < SMALL:
            continue
        stored = ir.Value(name=f"{name}_half", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16))
        widened = ir.node("Cast", [stored], {"to": FLOAT.value}, name=f"{name}_widened")
        made = widened.outputs[0]
        made.name, made.shape, made.type = f"{name}_widened", value.shape, ir.TensorType(FLOAT)
        ir.convenience.replace_all_uses_with(value, made)
        graph.insert_before(first, widened)
        result.pop(name)
        result[f"{name}_half"] = _rounded(name, weight)
    return result


def _rounded(name: str, weight: Weight) -> Weight:
    def read() -> Array:
        values = weight.read()
        largest = float(np.abs(values).max())
        if not largest <= float(np.finfo(np.float16).max):
            raise ConfigError(
                f"the weight {name} has values up to {largest:.3g}, which fp16 does not hold; leave this part in fp32"
            )
        return values.astype(np.float16)

    return replace(weight, read=read, type=onnx.TensorProto.FLOAT16)
