"""Clean-up of a traced graph: standard optimisation, and everything that depends on weights alone becomes a weight."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from framert.export.weights import Weight, fold

# Operators worth running once at export; others (a Gather of an embedding table, say) stay in the graph.
FOLDABLE = {"Concat", "Transpose", "Tanh", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Mul", "Add", "Sub", "Neg"}


def clean(model: ir.Model) -> None:
    """Fold constants, drop what is unused or twice there, and forget where each node came from."""
    _plain_products(model.graph)
    _group_norms(model.graph)
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        optimizer.optimize_ir(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    finally:
        logger.setLevel(level)
    for node in model.graph:
        node.metadata_props.clear()  # stack traces of the exporting machine
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None


def fold_weights(graph: ir.Graph, parameters: list[ir.Value], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Turn parameters, and nodes that read nothing else, into weights that are computed when they are written.

    Args:
        parameters: inputs of the graph that stand for stored tensors; removed from its inputs.
        weights: the stored tensors by name.
    Returns: the weights that the graph still reads, by name; they are in no list of the graph.
    """
    known = {value: weights[str(value.name)] for value in parameters}
    taken = set(weights)
    for value in parameters:
        graph.inputs.remove(value)
    for node in list(graph):
        inputs = [value for value in node.inputs if value is not None]
        weighty = any(value in known for value in inputs)
        if not weighty or node.op_type not in FOLDABLE or len(node.outputs) != 1:
            continue
        sources = [source for value in inputs if (source := known.get(value) or value.const_value) is not None]
        if len(sources) == len(inputs):
            known[node.outputs[0]] = fold(node, sources)
            stem = next(value.name for value in inputs if value in known)
            node.outputs[0].name = _free_name(f"{stem}_{node.op_type.lower()}", taken)
    needed: dict[str, Weight] = {}
    for node in list(graph):
        if node.outputs[0] in known:
            continue
        needed |= {str(value.name): known[value] for value in node.inputs if value in known}
    for node in reversed(list(graph)):
        if node.outputs[0] in known:
            value = node.outputs[0]
            node.graph.remove(node)  # type: ignore[union-attr]  # a node of a graph has one
            for use, index in list(value.uses()):
                use.replace_input_with(index, ir.Value(name=value.name, shape=value.shape, type=value.type))
    return needed


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, numbered where two parts of one weight would have it, and take it."""
    free = next(one for one in (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3))) if one not in taken)
    taken.add(free)
    return free


def _plain_products(graph: ir.Graph) -> None:
    """Rewrite Gemm with a transposed weight to a product with its transpose, which is then folded."""
    for node in list(graph):
        if node.op_type != "Gemm" or not node.attributes.get_int("transB", 0):
            continue
        source, weight, *bias = node.inputs
        assert source is not None
        assert weight is not None
        turned = ir.node("Transpose", [weight], {"perm": [1, 0]})
        product = ir.node("MatMul", [source, turned.outputs[0]])
        nodes = [turned, product]
        if bias:
            nodes.append(ir.node("Add", [product.outputs[0], bias[0]]))
        _replace(graph, node, nodes)


def _group_norms(graph: ir.Graph) -> None:
    """Rewrite GroupNormalization to InstanceNormalization over groups: ONNX Runtime has a kernel for that one alone."""
    for node in list(graph):
        if node.op_type != "GroupNormalization":
            continue
        source, scale, bias = node.inputs
        assert source is not None
        assert source.shape is not None
        assert scale is not None
        assert bias is not None
        groups = node.attributes.get_int("num_groups", 1)
        grouping = constant(graph, f"grouped_{groups}", np.array([0, groups, -1]))
        ones = constant(graph, f"ones_{groups}", np.ones(groups, np.float32))
        zeros = constant(graph, f"zeros_{groups}", np.zeros(groups, np.float32))
        shape = ir.node("Shape", [source])
        grouped = ir.node("Reshape", [source, grouping])
        epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
        normal = ir.node("InstanceNormalization", [grouped.outputs[0], ones, zeros], epsilon)
        back = ir.node("Reshape", [normal.outputs[0], shape.outputs[0]])
        per_channel = [_per_channel(graph, value, len(source.shape)) for value in (scale, bias)]
        scaled = ir.node("Mul", [back.outputs[0], per_channel[0].outputs[0]])
        shifted = ir.node("Add", [scaled.outputs[0], per_channel[1].outputs[0]])
        _replace(graph, node, [shape, grouped, normal, back, *per_channel, scaled, shifted])


def _per_channel(graph: ir.Graph, value: ir.Value, rank: int) -> ir.Node:
    """Return the node that turns a weight per channel into one that multiplies (batch, channels, ...)."""
    assert value.shape is not None
    axes = constant(graph, f"axes_{rank}", np.arange(1, rank - 1))
    node = ir.node("Unsqueeze", [value, axes])
    node.outputs[0].shape = ir.Shape([value.shape[0], *[1] * (rank - 2)])
    node.outputs[0].type = value.type
    return node


def constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Return the graph's constant of that name, made of the array if it is not there yet."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put nodes in a node's place; the last one's output takes over its name and its readers."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
