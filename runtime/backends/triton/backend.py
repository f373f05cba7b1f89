"""The backend: which graphs are on the device, and a denoiser for each engine."""

import threading
from collections.abc import Mapping
from typing import Any

import torch

from framert.runtime.arrays import Array
from framert.runtime.backends.base import check_attention, check_kind
from framert.runtime.backends.triton import settings
from framert.runtime.backends.triton.denoiser import TritonDenoiser
from framert.runtime.backends.triton.executor import Executor
from framert.runtime.backends.triton.failures import as_backend_error
from framert.runtime.backends.triton.families import read_model
from framert.runtime.backends.triton.graph_file import GraphFile
from framert.runtime.backends.triton.model import Model
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError


class TritonBackend:
    """Graphs of one bundle, loaded when first used.

    Args:
        bundle: an opened bundle with target "onnx", its graphs in fp32.
        impl: "auto" and "triton" run framert's kernels on CUDA (or, for "triton", in Triton's interpreter);
            "reference" is plain torch on the CPU. None is "auto".
        precision: of the denoiser: "bf16", "fp16", "fp32", "int8" or "fp8" (both with weights quantized here, per
            output, and activations per token). None is "bf16". With "fp32" the other graphs are fp32 too, else bf16.
    Raises: ConfigError for an unknown option; BackendError if the bundle or the precision cannot run here.
    """

    name = "triton"

    def __init__(self, bundle: Bundle, *, impl: str | None = None, precision: str | None = None) -> None:
        self._settings = settings.choose(impl, precision)
        check_kind(bundle, self.name)
        check_attention(bundle, self.name)
        exported = bundle.manifest.graphs["denoiser"].precision
        if exported != "float32":
            raise BackendError(
                f"{bundle.path} has its denoiser in {exported}, and backend 'triton' lowers float32 by itself; "
                "export the checkpoint in fp32, and give load() the precision"
            )
        self.precision: str = self._settings.precision
        self._bundle = bundle
        self._executors: dict[str, Executor] = {}
        self._model: Model | None = None
        self._loading = threading.Lock()

    def executor(self, graph: str) -> Executor:
        """Return the executor of a graph, loading it on first use."""
        with self._loading, as_backend_error(f"loading {graph}"):
            if graph not in self._executors:
                dtype = torch.float32 if graph == "conditioner" else self._settings.graphs
                file = GraphFile(self._bundle.graph_path(graph))
                self._executors[graph] = Executor(file, self._settings.device, dtype)
            return self._executors[graph]

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Any]:
        executor = self.executor(graph)
        with as_backend_error(f"the graph {graph}"):
            made = executor.run({name: torch.from_numpy(values) for name, values in feeds.items()})
            if graph == "conditioner":  # read by the denoiser alone: stays on the device
                return dict(made)
            return {name: tensor.float().cpu().numpy() for name, tensor in made.items()}

    def denoiser(self) -> TritonDenoiser:
        manifest = self._bundle.manifest
        with self._loading, as_backend_error("loading the denoiser"):
            if self._model is None:
                file = GraphFile(self._bundle.graph_path("denoiser"))
                self._model = read_model(file, manifest.model, self._settings)
        return TritonDenoiser(self._model, manifest.model.token_width, manifest.guidance_branches, self._settings)
