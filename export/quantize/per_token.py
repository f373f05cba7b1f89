"""Products in 8 bits with one activation scale per token, in plain Q/DQ.

    x / amax(x) -> QuantizeLinear, DequantizeLinear with a constant scale -> MatMul with a dequantized weight -> * amax

amax is a token's own, so a request's values never depend on its neighbours in the pack, and no range has to fit all
noise levels. ONNX Runtime runs the four nodes in the middle as one integer product; TensorRT takes them as int8 or fp8.
Where a norm reads the result it cancels amax, and the last product is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from framert.export.passes import constant
from framert.export.quantize.weights import LARGEST, per_channel
from framert.export.weights import Weight

NORMS = {"RMSNormalization", "LayerNormalization"}
SMALLEST = 1e-30  # of amax: a token of zeros stays one
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def quantize_products(
    graph: ir.Graph,
    weights: Mapping[str, Weight],
    kind: int,
    chosen: Callable[[str], bool],
    typical: Mapping[str, float],
    *,
    signed: bool = False,
) -> dict[str, Weight]:
    """Rewrite the chosen products of a graph.

    Args:
        weights: all weights of the graph, by the name of their value.
        kind: ONNX type of the values, INT8 or FLOAT8E4M3FN.
        chosen: says for the name of a weight whether its product is rewritten.
        typical: amax of a usual token at the input of the product of a weight. A norm whose input keeps its token's
            scale needs eps / amax^2 of that token, and gets that of a usual one; products not named here are scaled.
        signed: 8-bit activations are int8 around 0, as TensorRT takes them, and not uint8 around 128, which is what
            ONNX Runtime's fused product takes.
    Returns: the weights of the rewritten graph.
    """
    return _Rewrite(graph, weights, kind, chosen, typical, signed).run()


def is_product(node: ir.Node, weights: Mapping[str, Weight]) -> bool:
    """Say whether a node multiplies by a matrix of weights from the right."""
    if node.op_type != "MatMul" or node.inputs[1] is None:
        return False
    name = str(node.inputs[1].name)
    return name in weights and len(weights[name].shape) == 2


@dataclass(frozen=True, slots=True)
class _Unit:
    """A quantized input. amax: (tokens, 1), what its products must be multiplied with."""

    quantized: ir.Value
    amax: ir.Value


class _Rewrite:
    def __init__(
        self,
        graph: ir.Graph,
        weights: Mapping[str, Weight],
        kind: int,
        chosen: Callable[[str], bool],
        typical: Mapping[str, float],
        signed: bool,
    ) -> None:
        self.graph, self.weights, self.chosen, self.typical = graph, weights, chosen, typical
        self.kind = kind
        unsigned = kind == onnx.TensorProto.INT8 and not signed
        self.activations = ir.DataType.UINT8 if unsigned else ir.DataType(kind)
        zero: Any = np.array(128 if unsigned else 0).astype(self.activations.numpy())
        self.zero = constant(graph, "unit_zero", ir.tensor(zero, dtype=self.activations))
        self.scale = constant(graph, "unit_scale", np.array(1 / LARGEST[kind], np.float32))
        self.units: dict[ir.Value, _Unit] = {}

    def run(self) -> dict[str, Weight]:
        result = dict(self.weights)
        for node in list(self.graph):
            if not self.is_chosen(node):
                continue
            name = self.weight_name(node)
            values, scales = per_channel(result.pop(name), self.kind)
            result |= {f"{name}_values": values, f"{name}_scale": scales}
            self.rewrite(node, name)
        return result

    def weight_name(self, node: ir.Node) -> str:
        value = node.inputs[1]
        assert value is not None
        return str(value.name)

    def is_chosen(self, node: ir.Node) -> bool:
        return is_product(node, self.weights) and self.chosen(self.weight_name(node))

    def keeps_scale(self, node: ir.Node) -> bool:
        """Say whether a product's result may stay without its token's scale."""
        return self.weight_name(node) in self.typical and self.cancels(node.outputs[0])

    def cancels(self, value: ir.Value) -> bool:
        """Say whether a factor per token on this value changes nothing.

        A norm cancels it; and so does the amax of a rewritten product that keeps its scale, which may read the value
        after an elementwise product with another one, as w2 reads w3.
        """
        if _norm(value) is not None:
            return True
        reader = _only_reader(value)
        if reader is not None and reader.op_type == "Mul":
            reader = _only_reader(reader.outputs[0])
        return reader is not None and self.is_chosen(reader) and self.keeps_scale(reader)

    def unit(self, node: ir.Node) -> _Unit:
        """Return a product's quantized input, made once for all products that read it."""
        source = node.inputs[0]
        assert source is not None
        if source not in self.units:
            axes = constant(self.graph, "last_axis", np.array([-1]))
            smallest = constant(self.graph, "smallest_amax", np.array(SMALLEST, np.float32))
            magnitude = ir.node("Abs", [source])
            largest = ir.node("ReduceMax", [magnitude.outputs[0], axes], {"keepdims": 1})
            amax = ir.node("Max", [largest.outputs[0], smallest])
            unit = ir.node("Div", [source, amax.outputs[0]])
            rounded = ir.node("QuantizeLinear", [unit.outputs[0], self.scale, self.zero])
            nodes = {"magnitude": magnitude, "largest": largest, "amax": amax, "unit": unit, "quantized": rounded}
            for suffix, made in nodes.items():
                made.outputs[0].name = f"{source.name}_{suffix}"
                made.outputs[0].type = FLOAT
            rounded.outputs[0].type = ir.TensorType(self.activations)
            self.graph.insert_before(node, list(nodes.values()))
            self.units[source] = _Unit(rounded.outputs[0], amax.outputs[0])
        return self.units[source]

    def rewrite(self, node: ir.Node, name: str) -> None:
        unit, old, shape = self.unit(node), node.outputs[0], self.weights[name].shape
        stored = ir.Value(name=f"{name}_values", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType(self.kind)))
        scales = ir.Value(name=f"{name}_scale", shape=ir.Shape(shape[1:]), type=FLOAT)
        # ONNX Runtime fuses no product whose dequantized input another one reads, and merges equal nodes. The axis has
        # no meaning beside a scalar scale: a different one keeps each product's node its own.
        axis = 1 - len(unit.quantized.uses())
        back = ir.node("DequantizeLinear", [unit.quantized, self.scale, self.zero], {"axis": axis})
        weight = ir.node("DequantizeLinear", [stored, scales], {"axis": 1})
        product = ir.node("MatMul", [back.outputs[0], weight.outputs[0]])
        nodes = {f"{old.name}_input": back, f"{name}_dequantized": weight, f"{old.name}_unit": product}
        for made_name, made in nodes.items():
            made.outputs[0].name, made.outputs[0].type = made_name, FLOAT
        last = product
        if not self.keeps_scale(node):
            last = ir.node("Mul", [product.outputs[0], unit.amax])
        elif (norm := _norm(old)) is not None:
            eps = norm.attributes.get_float("epsilon", 1e-5)
            norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps / self.typical[name] ** 2)
        self.graph.insert_before(node, [back, weight, product, *([] if last is product else [last])])
        new = last.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


def _norm(value: ir.Value) -> ir.Node | None:
    """Return the norm over channels that is the only reader of a value."""
    reader = _only_reader(value)
    return reader if reader is not None and reader.op_type in NORMS and reader.inputs[0] is value else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None
