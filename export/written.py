"""Runs graphs in torch as they are written, each value in the type the file gives it.

For bfloat16: ONNX Runtime's CPU provider has no products in it, and what is published must have been measured. A result
is rounded once per operator, as a GPU rounds that sums products in fp32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framert.export.oracle import Array, OracleDenoiser, Watch
from framert.kernels.frame_attention.reference import frame_attention
from framert.runtime import backends
from framert.runtime.backends.base import Backend, Denoiser
from framert.runtime.backends.triton.graph_file import DTYPES, GraphFile
from framert.runtime.backends.triton.operators import OPERATORS, Attributes, Operator
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError

BFLOAT16 = "bfloat16"


def runner(bundle: Bundle) -> Backend:
    """Return what can run a bundle on a CPU: ONNX Runtime, but for graphs in bfloat16."""
    if any(graph.precision == BFLOAT16 for graph in bundle.manifest.graphs.values()):
        return Written(bundle)
    return backends.create("onnxruntime", bundle, threads=None)


class Written:
    """Graphs in bfloat16 in torch, others in ONNX Runtime; each is loaded when first used."""

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self.watch: Watch | None = None
        self._bundle = bundle
        self._others = backends.create("onnxruntime", bundle, threads=None)
        self._graphs: dict[str, WrittenGraph] = {}

    def run(self, graph: str, feeds: Mapping[str, Array]) -> Mapping[str, Any]:
        """Raises: BackendError for an operator that is not known here."""
        if self._bundle.manifest.graphs[graph].precision != BFLOAT16:
            return self._others.run(graph, feeds)
        if graph not in self._graphs:
            self._graphs[graph] = WrittenGraph(GraphFile(self._bundle.graph_path(graph)))
        return self._graphs[graph].run(feeds)

    def denoiser(self) -> Denoiser:
        graph = self._bundle.manifest.graphs["denoiser"]
        return OracleDenoiser(self, graph.inputs) if graph.precision == BFLOAT16 else self._others.denoiser()


class WrittenGraph:
    """One graph. Raises: BackendError for an operator that is not known here."""

    def __init__(self, file: GraphFile) -> None:
        self._nodes, self._outputs = file.nodes, file.outputs
        if unknown := sorted({node.op for node in file.nodes} - set(KNOWN)):
            raise BackendError(f"{file.path} uses {', '.join(unknown)}, which is not computed in bfloat16 here")
        read = {name for node in file.nodes for name in node.inputs} | set(file.outputs)
        self._weights = {name: file.tensor(name) for name in file.weights & read}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name for inputs in any order."""
        values = self._weights | {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in feeds.items()}
        with torch.no_grad():
            for node in self._nodes:
                made = KNOWN[node.op](node.attributes, *(values[name] if name else None for name in node.inputs))
                values.update(zip(node.outputs, [made] if isinstance(made, Tensor) else made, strict=True))
        return {name: values[name].numpy() for name in self._outputs}


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    return x.to(DTYPES[attributes["to"]])


def _attend(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return frame_attention(*inputs, softcap=attributes["softcap"], scale=attributes["scale"])


def _rotate(attributes: Attributes, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn neighbouring pairs of every head: x (batch, tokens, heads * width), angles (batch, tokens, width / 2)."""
    if not attributes.get("interleaved", 0) or x.dim() != 3:
        raise BackendError(f"RotaryEmbedding of {x.dim()} axes with {dict(attributes)} is not computed here")
    pairs = x.reshape(*x.shape[:2], attributes["num_heads"], -1, 2)
    first, second = pairs.unbind(-1)
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    turned = torch.stack((cosine * first - sine * second, sine * first + cosine * second), -1)
    return turned.flatten(2)


def _softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x.float(), attributes.get("axis", -1)).to(x.dtype)


KNOWN: Mapping[str, Operator] = {
    **OPERATORS,
    "Cast": _cast,
    "Softmax": _softmax,
    "RotaryEmbedding": _rotate,
    "framert.FrameAttention": _attend,
}
