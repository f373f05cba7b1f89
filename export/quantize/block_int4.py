"""Products with weights of 4 bits in blocks along the input channels; the rounding and packing are onnxruntime's.

Activations keep their precision, or are rounded block by block within a token, so requests never share a scale.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from framert.export.passes import constant
from framert.export.quantize.per_token import is_product
from framert.export.quantize.weights import made_together
from framert.export.weights import Array, Weight

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
FUSED_BLOCK = 32  # channels of one scale in ONNX Runtime's operator
PLAIN_BLOCKS = (128, 64)  # the sizes that TensorRT takes
INT8_PRODUCTS = 4  # accuracy_level: the operator multiplies activations rounded to 8 bits, block by block
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def quantize_products(
    graph: ir.Graph, weights: Mapping[str, Weight], chosen: Callable[[str], bool], *, plain: bool
) -> dict[str, Weight]:
    """Rewrite the chosen products of a graph.

    Args:
        weights: all weights of the graph, by the name of their value.
        chosen: says for the name of a weight whether its product is rewritten.
        plain: a DequantizeLinear of blocks of 128 before the product, as TensorRT takes it. Where 128 does not divide
            the input, blocks are of 64, and an input that 64 does not divide gets channels of zeros. Otherwise ONNX
            Runtime's MatMulNBits with blocks of 32.
    Returns: the weights of the rewritten graph.
    """
    result = dict(weights)
    for node in list(graph):
        if not is_product(node, weights):
            continue
        source, value = node.inputs
        assert source is not None
        assert value is not None
        name = str(value.name)
        inputs, outputs = weights[name].shape
        if not chosen(name):
            continue
        block = plain_block(inputs) if plain else FUSED_BLOCK
        weight = result.pop(name)
        if plain and inputs % block:
            source = _widened(graph, node, source, -inputs % block)
            weight = _with_zeros(weight, -inputs % block)
        packed, scales = _blocks(weight, block, plain)
        result |= {f"{name}_values": packed, f"{name}_scale": scales}
        stored = ir.Value(
            name=f"{name}_values", shape=ir.Shape(packed.shape), type=ir.TensorType(ir.DataType(packed.type))
        )
        scale = ir.Value(name=f"{name}_scale", shape=ir.Shape(scales.shape), type=FLOAT)
        old = node.outputs[0]
        if plain:
            back = ir.node("DequantizeLinear", [stored, scale], {"axis": 0, "block_size": block})
            back.outputs[0].name, back.outputs[0].type = f"{name}_dequantized", FLOAT
            nodes = [back, ir.node("MatMul", [source, back.outputs[0]])]
        else:
            attributes = {
                "K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": INT8_PRODUCTS,
            }  # fmt: skip
            nodes = [ir.node("MatMulNBits", [source, stored, scale], attributes, domain=MICROSOFT)]
            graph.opset_imports[MICROSOFT] = 1
        new = nodes[-1].outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        graph.insert_before(node, nodes)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    return result


def plain_block(inputs: int) -> int:
    """Return the block for so many input channels: the largest that divides them, or the smallest."""
    return next((block for block in PLAIN_BLOCKS if inputs % block == 0), min(PLAIN_BLOCKS))


def _widened(graph: ir.Graph, node: ir.Node, source: ir.Value, more: int) -> ir.Value:
    """Return a product's input with ``more`` channels of zeros, the same for all products that read it."""
    name = f"{source.name}_widened"
    for other, _ in source.uses():
        if other.op_type == "Pad" and other.outputs[0].name == name:
            return other.outputs[0]
    ends = constant(graph, f"widen_{more}", np.array([0, more], np.int64))
    last = constant(graph, "widen_axis", np.array([-1], np.int64))
    pad = ir.node("Pad", [source, ends, None, last])
    pad.outputs[0].name, pad.outputs[0].type = name, FLOAT
    graph.insert_before(node, pad)
    return pad.outputs[0]


def _with_zeros(weight: Weight, more: int) -> Weight:
    """Return a weight (in, out) with rows of zeros for channels that do not exist."""

    def read() -> Array:
        return np.pad(weight.read(), ((0, more), (0, 0)))

    return replace(weight, shape=(weight.shape[0] + more, weight.shape[1]), read=read)


def _blocks(weight: Weight, block: int, plain: bool) -> tuple[Weight, Weight]:
    """Return the packed values and the scales of a weight (in, out), symmetric."""
    inputs, outputs = weight.shape
    quantizer = _quantizer()
    form = quantizer.QuantFormat.QDQ if plain else quantizer.QuantFormat.QOperator
    config = quantizer.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, quant_format=form)

    def make() -> tuple[Array, NDArray[np.float32]]:
        packed, scales, _ = quantizer.DefaultWeightOnlyQuantizer(config).qbits_block_quant(
            np.ascontiguousarray(weight.read())
        )
        return packed, scales

    count = -(-inputs // block)
    values, kind = (
        ((inputs, outputs), onnx.TensorProto.INT4) if plain else ((outputs, count, block // 2), onnx.TensorProto.UINT8)
    )
    shape = (count, outputs) if plain else (outputs, count)
    read_values, read_scales = made_together(make)
    return Weight(values, read_values, kind), Weight(shape, read_scales)


def _quantizer() -> Any:
    """Import onnxruntime's module, which sets up the root logger for all of its process, and undo that."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    return matmul_nbits_quantizer
