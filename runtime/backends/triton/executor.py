"""Runs a graph of any family in torch, one operator after another, on one device and in one precision."""

from collections.abc import Mapping

import torch
from torch import Tensor

from framert.runtime.backends.triton import group_norms
from framert.runtime.backends.triton.graph_file import GraphFile, Node
from framert.runtime.backends.triton.operators import HOST_INPUTS, OPERATORS, Operator
from framert.runtime.errors import BackendError


class Executor:
    """One graph with its weights on the device.

    Args:
        file: the graph. device: where it runs.
        dtype: of weights and activations; norms, softmax and what they touch directly are fp32.
    Raises: BackendError that names an operator which backend 'triton' does not have.
    """

    def __init__(self, file: GraphFile, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._outputs = file.outputs
        nodes = group_norms.merged(file)
        if unknown := sorted({node.op for node in nodes} - set(OPERATORS)):
            raise BackendError(
                f"{file.path} uses {', '.join(unknown)}, which backend 'triton' does not run; "
                "export the checkpoint in fp32, or choose backend='onnxruntime'"
            )
        read = {name for node in nodes for name in _read_on_device(node)} | set(file.outputs)
        needed = file.weights & (read | {name for node in nodes for name in node.inputs})
        self._weights = {
            name: self._placed(file.tensor(name)) if name in read else file.tensor(name) for name in needed
        }
        self._plan = _plan(nodes, set(file.outputs) | set(self._weights))

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs for inputs on any device: integers stay on the host, floats are taken to the device.

        Returns: tensors on the device, in the precision they were computed in.
        Raises: BackendError with torch's reason.
        """
        values = dict(self._weights)
        values |= {name: tensor.to(self._device, self._dtype) if tensor.is_floating_point() else tensor.cpu()
                   for name, tensor in feeds.items()}  # fmt: skip
        for node, operator, unread in self._plan:
            inputs = [values[name] if name else None for name in node.inputs]
            try:
                result = operator(node.attributes, *self._together(node.op, inputs))
            except (RuntimeError, TypeError, IndexError, KeyError, AssertionError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise BackendError(f"the operator {node.op} that makes {node.outputs[0]} failed: {reason}") from error
            results = [result] if isinstance(result, Tensor) else result
            values.update(zip(node.outputs, results, strict=True))
            for name in unread:
                del values[name]
        return {name: values[name] for name in self._outputs}

    def _placed(self, tensor: Tensor) -> Tensor:
        """Return a stored tensor where the graph reads it: single numbers and integers on the host."""
        if not tensor.is_floating_point():
            return tensor
        if not tensor.dim():
            return tensor.float()  # beside a tensor it does not decide the precision
        limits = torch.finfo(self._dtype)
        tensor = tensor.to(self._device).clamp(limits.min, limits.max).to(self._dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    def _together(self, op: str, inputs: list[Tensor | None]) -> list[Tensor | None]:
        """Take host tensors to the device where an operator reads them beside tensors that lie there."""
        host = HOST_INPUTS.get(op, frozenset())
        on_device = any(
            tensor is not None and tensor.device == self._device and tensor.dim()
            for place, tensor in enumerate(inputs)
            if place not in host
        )
        if not on_device:
            return inputs
        return [
            tensor if tensor is None or place in host or not tensor.dim() else tensor.to(self._device)
            for place, tensor in enumerate(inputs)
        ]


def _read_on_device(node: Node) -> list[str]:
    host = HOST_INPUTS.get(node.op, frozenset())
    return [name for place, name in enumerate(node.inputs) if place not in host]


def _plan(nodes: list[Node], kept: set[str]) -> list[tuple[Node, Operator, list[str]]]:
    """Pair every node with its function and the values that nobody reads after it."""
    last: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for name in (*node.inputs, *node.outputs):
            last[name] = place
    return [
        (
            node,
            OPERATORS[node.op],
            [name for name in {*node.inputs, *node.outputs} if name and name not in kept and last[name] == place],
        )
        for place, node in enumerate(nodes)
    ]
