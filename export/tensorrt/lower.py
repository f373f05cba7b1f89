"""Operators of opsets 20 to 23 written in older ones, for a TensorRT whose parser does not have them (JetPack 6's)."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def lower(model: onnx.ModelProto, missing: Collection[str]) -> int:
    """Rewrite the nodes of the missing operators and return how many there were.

    Args:
        model: changed in place; its weights may lie outside.
        missing: names out of ``OPERATORS``.
    """
    nodes, count = [], 0
    for node in model.graph.node:
        if node.op_type in missing and node.domain in ("", "ai.onnx"):
            made = _Body(model.graph, node.name or node.output[0])
            OPERATORS[node.op_type](made, node)
            nodes += made.nodes
            count += 1
        else:
            nodes.append(node)
    if count:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return count


class _Body:
    """The nodes that replace one. stem: before the names of what is new."""

    def __init__(self, graph: onnx.GraphProto, stem: str) -> None:
        self.graph = graph
        self.stem = stem
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"{self.stem}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}_{kind.lower()}", **attributes))
        return name

    def split(self, source: str, axis: int) -> tuple[str, str]:
        names = [f"{self.stem}/even", f"{self.stem}/odd"]
        node = helper.make_node("Split", [source], names, name=f"{self.stem}/split", axis=axis, num_outputs=2)
        self.nodes.append(node)
        return names[0], names[1]

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"{self.stem}/constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def _rms_norm(body: _Body, node: onnx.NodeProto) -> None:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in fp32, which the input is."""
    source, scale = node.input
    attributes = _attributes(node)
    assert attributes.get("axis", -1) == -1, node.name
    squared = body.add("Mul", source, source)
    mean = body.add("ReduceMean", squared, body.constant([-1], np.int64), keepdims=1)
    least = body.add("Add", mean, body.constant(attributes.get("epsilon", 1e-5), np.float32))
    normal = body.add("Div", source, body.add("Sqrt", least))
    body.add("Mul", normal, scale, output=node.output[0])


def _rotate(body: _Body, node: onnx.NodeProto) -> None:
    """Interleaved pairs of (1, tokens, heads * head_dim) turned by cosines and sines (1, tokens, head_dim / 2)."""
    source, cosine, sine = node.input
    attributes = _attributes(node)
    assert attributes["interleaved"] == 1, node.name
    assert not attributes.get("rotary_embedding_dim", 0), node.name
    half = body.add("Shape", cosine, start=2, end=3)
    heads = body.constant([attributes["num_heads"]], np.int64)
    keep, pair = body.constant([0, 0], np.int64), body.constant([2], np.int64)
    pairs = body.add("Reshape", source, body.add("Concat", keep, heads, half, pair, axis=0))
    even, odd = body.split(pairs, axis=4)
    axes = body.constant([2, 4], np.int64)
    c, s = body.add("Unsqueeze", cosine, axes), body.add("Unsqueeze", sine, axes)
    first = body.add("Sub", body.add("Mul", even, c), body.add("Mul", odd, s))
    second = body.add("Add", body.add("Mul", even, s), body.add("Mul", odd, c))
    turned = body.add("Concat", first, second, axis=4)
    body.add("Reshape", turned, body.constant([0, 0, -1], np.int64), output=node.output[0])


def _gelu(body: _Body, node: onnx.NodeProto) -> None:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), or (1 + erf(x / sqrt(2))), in fp32 whatever its type."""
    (source,) = node.input
    x = body.add("Cast", source, to=onnx.TensorProto.FLOAT)

    def scaled(value: str, factor: float) -> str:
        return body.add("Mul", value, body.constant(factor, np.float32))

    if _attributes(node).get("approximate", b"none") == b"tanh":
        cubed = body.add("Mul", body.add("Mul", x, x), x)
        bent = body.add("Tanh", scaled(body.add("Add", x, scaled(cubed, 0.044715)), math.sqrt(2 / math.pi)))
    else:
        bent = body.add("Erf", scaled(x, math.sqrt(0.5)))
    share = body.add("Add", bent, body.constant(1.0, np.float32))
    body.add("CastLike", body.add("Mul", scaled(x, 0.5), share), source, output=node.output[0])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


OPERATORS: Mapping[str, Callable[[_Body, onnx.NodeProto], None]] = {
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotate,
    "Gelu": _gelu,
}
