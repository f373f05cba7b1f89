"""Clean-up of a traced graph: standard optimisation, and everything that depends on weights alone becomes a weight."""

import logging
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from framert.export.weights import Weight, fold

# Operators worth running once at export; others (a Gather of an embedding table, say) stay in the graph.
FOLDABLE = {"Concat", "Transpose", "Tanh", "Reshape", "Unsqueeze", "Squeeze", "Mul", "Add", "Sub", "Neg"}


def clean(model: ir.Model) -> None:
    """Fold constants, drop what is unused or twice there, and forget where each node came from."""
    _plain_products(model.graph)
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
            node.outputs[0].name = f"{stem}_{node.op_type.lower()}"
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
        old, new = node.outputs[0], nodes[-1].outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        graph.insert_before(node, nodes)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
