"""Weights of a graph, read and computed one at a time while they are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
EXTERNAL_FROM = 1 << 30  # bytes of weights above which they go into a file of their own; a graph file ends at 2 GiB
ALIGNMENT = 4096  # of tensors in that file, so that they can be mapped
GRAPH_FIELD, INITIALIZER_FIELD, RAW_DATA_FIELD = 7, 5, 9  # of ModelProto, GraphProto, TensorProto
# ONNX element type -> how its values are stored, and bits of one value; types numpy lacks are stored as their bits.
STORED = {
    onnx.TensorProto.FLOAT: ("<f4", 32),
    onnx.TensorProto.FLOAT16: ("<f2", 16),
    onnx.TensorProto.BFLOAT16: ("<u2", 16),
    onnx.TensorProto.INT8: ("i1", 8),
    onnx.TensorProto.UINT8: ("u1", 8),
    onnx.TensorProto.FLOAT8E4M3FN: ("u1", 8),
    onnx.TensorProto.INT4: ("u1", 4),
}


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that is made when asked for.

    shape: of the ONNX tensor. read: its values, float32 or, of another type, as they are stored: the array's bytes are
    the tensor's. type: ONNX element type, a key of STORED.
    """

    shape: tuple[int, ...]
    read: Callable[[], Array]
    type: int = onnx.TensorProto.FLOAT

    @property
    def size(self) -> int:
        """In bytes; two 4-bit values share one."""
        return -(-STORED[self.type][1] * int(np.prod(self.shape, dtype=np.int64)) // 8)


def fold(node: ir.Node, inputs: Sequence[Weight | ir.TensorProtocol]) -> Weight:
    """Return the output of a node whose inputs are all weights or constants."""
    from onnx.reference import ReferenceEvaluator

    shape = node.outputs[0].shape
    assert shape is not None, node
    sides = tuple(side for side in shape if isinstance(side, int))
    assert len(sides) == len(shape), node
    proto = ir.to_proto(node)
    names = [str(value.name) for value in node.inputs if value is not None]

    def read() -> Array:
        feeds = {
            name: value.read() if isinstance(value, Weight) else value.numpy()
            for name, value in zip(names, inputs, strict=True)
        }
        (result,) = ReferenceEvaluator(proto).run(None, feeds)
        return np.ascontiguousarray(result)

    return Weight(sides, read)


def write_model(
    model: ir.Model, weights: Mapping[str, Weight], functions: Sequence[onnx.FunctionProto], folder: Path, name: str
) -> tuple[str, ...]:
    """Write NAME.onnx, and NAME.onnx.data where the weights are large; memory holds one weight at a time.

    Returns: the names of the files, the graph first.
    """
    proto = ir.to_proto(model)
    proto.functions.extend(functions)
    if functions:
        proto.opset_import.append(onnx.helper.make_opsetid(functions[0].domain, 1))
    graph_file, data_file = f"{name}.onnx", f"{name}.onnx.data"
    if sum(weight.size for weight in weights.values()) <= EXTERNAL_FROM:
        with (folder / graph_file).open("wb") as stream:
            _write_inside(proto, weights, stream)
        return (graph_file,)
    with (folder / data_file).open("wb") as stream:
        for key, weight in weights.items():
            stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(_describe(key, weight))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for entry, text in (("location", data_file), ("offset", stream.tell()), ("length", weight.size)):
                tensor.external_data.add(key=entry, value=str(text))
            _write_values(weight, stream)
    (folder / graph_file).write_bytes(proto.SerializeToString())
    return (graph_file, data_file)


def _write_inside(proto: onnx.ModelProto, weights: Mapping[str, Weight], stream: BinaryIO) -> None:
    """Write the model with each weight's values streamed to their place: protobuf fields may come in any order."""
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = {}
    for key, weight in weights.items():
        head = _describe(key, weight).SerializeToString() + _prefix(RAW_DATA_FIELD, weight.size)
        heads[key] = _prefix(INITIALIZER_FIELD, len(head) + weight.size) + head
    length = len(graph) + sum(len(head) + weights[key].size for key, head in heads.items())
    stream.write(proto.SerializeToString())
    stream.write(_prefix(GRAPH_FIELD, length))
    stream.write(graph)
    for key, head in heads.items():
        stream.write(head)
        _write_values(weights[key], stream)


def _describe(name: str, weight: Weight) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, dims=weight.shape, data_type=weight.type)


def _write_values(weight: Weight, stream: BinaryIO) -> None:
    values = np.ascontiguousarray(weight.read(), dtype=STORED[weight.type][0])
    assert values.nbytes == weight.size, (values.shape, weight.shape)
    stream.write(values.data)


def _prefix(field: int, length: int) -> bytes:
    """Return the tag and length before the bytes of a length-delimited protobuf field."""
    encoded = bytearray([field << 3 | 2])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*encoded, length])
