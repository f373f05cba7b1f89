"""FrameAttention for TensorRT without a plugin: padded gather and mask, in operators that its parser takes.

The parser refuses the Loop over sequences that a bundle carries (it has no tensor sequences). Here every sequence is
gathered into a row of a padded batch instead. A length that depends on the contents of ``q_range`` cannot be a shape in
TensorRT, so the graph gets more inputs whose *lengths* say how far to pad: ``window``, and where text is attended to
apart ``text_window``.
"""

from collections.abc import Mapping

import onnx
from onnx import helper

from framert.export.tensorrt.padded_functions import layer_function, tables_function, text_tables_function

OPERATOR = "FrameAttention"
DOMAIN = "framert"
WINDOWS = {"window": "longest", "text_window": "text_longest"}  # input -> name of its one free axis
# those of text last
INPUTS = (
    "query", "key", "value", "q_range", "kv_range", "text_k", "text_v", "text_range", "gate",
)  # fmt: skip
LAYER = ("query", "key", "value", "text_k", "text_v", "gate")


def swap(model: onnx.ModelProto, *, heads: int, kv_heads: int, head_dim: int) -> tuple[str, ...]:
    """Put the padded body in the place of every FrameAttention node, and its window inputs into the graph.

    ``window`` must be 0, 1, .. up to at least the longest sequence (queries and keys), ``text_window`` up to at least
    the longest text; both int32. The last keys, not an error, are lost where they are shorter.

    Args:
        model: changed in place; its weights may lie outside.
    Returns: the windows that it takes now, none for a graph without a FrameAttention, which is left as it is.
    """
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]
    if not nodes:
        return ()
    tables, expanded = _Tables(), dict[str, list[onnx.NodeProto]]()
    for node in nodes:
        given = _inputs(node)
        made, indexes = tables.of(given)
        body = layer_function(
            _float(node, "softcap"), _float(node, "scale"),
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, text="gate" in given,
        )  # fmt: skip
        values = {name: given[name] for name in LAYER if name in given} | indexes
        layer = _expand(body, values, {"output": node.output[0]}, node.name or node.output[0])
        expanded[node.output[0]] = [*made, *layer]
    swapped = [part for node in model.graph.node for part in expanded.get(next(iter(node.output), ""), [node])]
    del model.graph.node[:]
    model.graph.node.extend(swapped)
    windows = tuple(WINDOWS) if any("gate" in _inputs(node) for node in nodes) else ("window",)
    for name in windows:
        model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT32, [WINDOWS[name]]))
    kept = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)
    return windows


class _Tables:
    """The index tables of a graph: made before the first layer that has their ranges, shared by the others."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, given: Mapping[str, str]) -> tuple[list[onnx.NodeProto], dict[str, str]]:
        """Return the nodes to put before a layer of these inputs, and the names of its tables."""
        own = {name: given[name] for name in ("query", "key", "q_range", "kv_range")} | {"window": "window"}
        nodes, names = self._once(tables_function(), own, ("q_range", "kv_range"))
        if "gate" in given:
            text = {"text": given["text_k"], "text_range": given["text_range"], "text_window": "text_window"}
            more, text_names = self._once(text_tables_function(), text, ("text_range",))
            return nodes + more, names | text_names
        return nodes, names

    def _once(
        self, function: onnx.FunctionProto, inputs: Mapping[str, str], ranges: tuple[str, ...]
    ) -> tuple[list[onnx.NodeProto], dict[str, str]]:
        key = tuple(inputs[name] for name in ranges)
        if key in self._made:
            return [], self._made[key]
        stem = f"frame_tables_{len(self._made)}"
        self._made[key] = {name: f"{stem}/{name}" for name in function.output}
        return _expand(function, inputs, {}, stem), self._made[key]


def _inputs(node: onnx.NodeProto) -> dict[str, str]:
    """Return the names of a node's inputs, those of text only where it has them."""
    return dict(zip(INPUTS, node.input, strict=False))


def _expand(
    function: onnx.FunctionProto, inputs: Mapping[str, str], outputs: Mapping[str, str], stem: str
) -> list[onnx.NodeProto]:
    """Return the function's nodes with the graph's names at its ends and ``stem/`` before all others.

    A local function would do, but TensorRT then names the nodes of all layers alike, in errors and in engines.
    """
    assert set(function.input) <= set(inputs), set(function.input) - set(inputs)
    names = dict(inputs) | dict(outputs)
    nodes = []
    for node in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for tensors in (copy.input, copy.output):
            tensors[:] = [names.get(name, f"{stem}/{name}") for name in tensors]
        copy.name = f"{stem}/{node.output[0]}"
        nodes.append(copy)
    return nodes


def _float(node: onnx.NodeProto, name: str) -> float:
    (value,) = (attribute.f for attribute in node.attribute if attribute.name == name)
    return float(value)
