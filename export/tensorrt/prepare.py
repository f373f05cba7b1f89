"""One graph of a bundle, as TensorRT is given it: cast if asked for, and with an attention that its parser takes."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from framert.export.precision import WORDS
from framert.export.tensorrt.body import WINDOWS, swap
from framert.export.tensorrt.half import cast
from framert.export.tensorrt.lower import lower
from framert.export.tensorrt.plugin import Plugin
from framert.export.weights import STORED, Array, Weight, write_model
from framert.runtime.bundle import Bundle
from framert.runtime.manifest import Graph, TensorSpec

LARGE = 1024  # values from which a constant is a weight, read when it is written


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph to parse. file: where external weights are found; content: the graph, None for the file's own.

    graph: its entry of the manifest, with the inputs and the precision it has now.
    """

    name: str
    file: Path
    content: bytes | None
    graph: Graph


def prepare(
    bundle: Bundle,
    name: str,
    half: str | None,
    work: Path,
    *,
    plugin: Plugin | None = None,
    missing: Collection[str] = (),
) -> Prepared:
    """Return a graph as it is, or with what it has in fp32 cast.

    Args:
        half: None, "fp16" or "bf16".
        work: takes the files of a cast graph.
        plugin: leave FrameAttention to it, and to nothing else.
        missing: operators that the parser lacks, see ``lower``.
    """
    graph, model = bundle.manifest.graphs[name], bundle.manifest.model
    file = bundle.graph_path(name)
    if half is not None and graph.precision != WORDS[half]:
        file = _cast(file, half, work, name)
        if graph.precision == WORDS["fp32"]:  # a quantized graph keeps its name
            graph = replace(graph, precision=WORDS[half])
    proto = onnx.load(file, load_external_data=False)
    lowered = lower(proto, missing)
    if plugin is not None and plugin.adapt(proto):
        return Prepared(name, file, proto.SerializeToString(), graph)
    if names := swap(proto, heads=model.heads, kv_heads=model.kv_heads, head_dim=model.head_dim):
        windows = {key: TensorSpec(dtype="int32", shape=(WINDOWS[key],)) for key in names}
        return Prepared(name, file, proto.SerializeToString(), replace(graph, inputs={**graph.inputs, **windows}))
    return Prepared(name, file, proto.SerializeToString() if lowered else None, graph)


def _cast(file: Path, half: str, work: Path, name: str) -> Path:
    """Write a graph in half precision to the folder ``work`` and return its file; one weight is in memory at a time.

    External weights of the source are mapped and read when they are written.
    """
    model = ir.load(file)
    weights: dict[str, Weight] = {}
    for key, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        outside = isinstance(tensor, ir.ExternalTensor)
        if tensor.dtype.value in STORED and (outside or tensor.size >= LARGE):
            weights[key] = Weight(tuple(tensor.shape.numpy()), _reader(tensor), tensor.dtype.value)
            value.const_value = None
            del model.graph.initializers[key]
        elif outside:  # its place is in the source's file, and the new graph has another
            value.const_value = ir.tensor(tensor.numpy().copy(), name=key)
    made = cast(model, weights, half)
    (graph, *_) = write_model(model, made, [], work, name)
    return work / graph


def _reader(tensor: ir.TensorProtocol) -> Callable[[], Array]:
    def read() -> Array:
        if tensor.dtype is ir.DataType.FLOAT:
            return tensor.numpy()
        return np.frombuffer(tensor.tobytes(), STORED[tensor.dtype.value][0])

    return read
