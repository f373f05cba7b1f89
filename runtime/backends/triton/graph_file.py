"""A bundle's ONNX file as plain values: its nodes, and its weights as tensors that are read when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framert.runtime.errors import BackendError

# ONNX element type -> torch's. The types that numpy lacks are stored as their bits.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. inputs and outputs are names of values, "" where an optional one is left out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


class GraphFile:
    """One opened ONNX file. External data is mapped into memory, never read as a whole.

    Args:
        path: the file; its external data lies beside it.
    Raises: BackendError if the onnx package is missing or cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnx
        except ImportError as error:
            raise BackendError("backend 'triton' reads bundles with the onnx package; pip install onnx") from error
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's own types, all from Exception
            raise BackendError(f"{path} is no ONNX file ({error}); export the checkpoint again") from error
        self.path = path
        self.inputs = tuple(value.name for value in model.graph.input)
        self.outputs = tuple(value.name for value in model.graph.output)
        self.nodes = tuple(
            Node(
                f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
                tuple(node.input),
                tuple(node.output),
                {item.name: _attribute(onnx.helper.get_attribute_value(item)) for item in node.attribute},
            )
            for node in model.graph.node
        )
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}

    @property
    def weights(self) -> frozenset[str]:
        """The names of the tensors that the file holds."""
        return frozenset(self._stored)

    def tensor(self, name: str) -> Tensor:
        """Return a stored tensor on the CPU; where it is mapped it must not be written.

        Raises: BackendError if there is none of that name, or its type is not one of DTYPES.
        """
        if name not in self._stored:
            raise BackendError(f"{self.path} has no weight {name}; export the checkpoint again")
        stored = self._stored[name]
        if stored.data_type not in DTYPES:
            raise BackendError(
                f"{self.path}: weight {name} has ONNX type {stored.data_type}, which backend 'triton' does not read; "
                "export the checkpoint in fp32 and give load() the precision"
            )
        return _values(stored, self.path.parent).view(DTYPES[stored.data_type]).reshape(tuple(stored.dims))

    def node_of(self, op: str, weight: str) -> Node:
        """Return the node of that type that reads a weight. Raises: BackendError if there is none."""
        found = next((node for node in self.nodes if node.op == op and weight in node.inputs), None)
        if found is None:
            raise BackendError(f"{self.path} has no {op} that reads {weight}; export the checkpoint again")
        return found


def _attribute(value: Any) -> Any:
    """Return an attribute as plain Python: text instead of bytes, tensors as torch's."""
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "data_type"):
        return _values(value, Path()).view(DTYPES[value.data_type]).reshape(tuple(value.dims))
    return list(value) if not isinstance(value, int | float | str) and hasattr(value, "__iter__") else value


def _values(stored: Any, folder: Path) -> Tensor:
    """Return the flat values of a TensorProto, those of types numpy lacks as their bits."""
    if stored.external_data:
        where = {entry.key: entry.value for entry in stored.external_data}
        length = int(where["length"])
        # copy-on-write, because torch takes no read-only memory
        raw = np.memmap(folder / where["location"], np.uint8, "c", int(where.get("offset", 0)), (length,))
        return torch.from_numpy(raw)
    if stored.raw_data:
        return torch.frombuffer(bytearray(stored.raw_data), dtype=torch.uint8)
    import onnx

    array = np.array(onnx.numpy_helper.to_array(stored))  # a small constant, kept in the fields of its type
    return torch.from_numpy(array.reshape(-1)).view(torch.uint8) if array.size else torch.empty(0, dtype=torch.uint8)
