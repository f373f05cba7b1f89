"""OpenVINO on the CPU: reads the same bundle, and computes in bfloat16 where the CPU can."""

import threading
from collections.abc import Mapping
from typing import Any

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.backends.host import HostArenas, check_threads, first_line
from framert.runtime.backends.openvino_attention import extension, runs
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.tables import Tables

PRECISIONS = ("fp32", "bf16")
# What bf16 computes in bfloat16. The conditioner's products serve every step, and the autoencoder makes the pixels.
HALF = ("text_encoder", "denoiser")


class OpenVinoBackend:
    """Compiled models of one bundle's graphs, made when first used.

    Args:
        bundle: an opened bundle with target "onnx".
        threads: threads inside an operator; None is one per physical core.
        precision: "fp32", or "bf16" for denoiser and text encoder on a CPU that has it; None is "fp32". Quantized parts
            of a bundle stay what they are.
    Raises: BackendError if openvino is missing, the bundle is made for something else, or the CPU has no bf16.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None, precision: str | None = None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise BackendError(
                "backend 'openvino' needs the openvino package; pip install 'framert[openvino]'"
            ) from error
        check_threads(threads)
        kind = bundle.manifest.target.get("kind")
        if kind != "onnx":
            raise BackendError(f"{bundle.path} is built for {kind!r}; backend 'openvino' runs kind 'onnx'")
        self._core = openvino.Core()
        self._core.add_extension(extension())
        self.precision = _checked(precision, self._core)
        self._bundle = bundle
        self._openvino = openvino
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._compiled: dict[str, Any] = {}
        self._requests: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._running = threading.Lock()  # a request holds one call's tensors

    def compiled(self, graph: str) -> Any:
        """Return the CompiledModel of a graph, loading it on first use."""
        with self._loading:
            if graph not in self._compiled:
                path = self._bundle.graph_path(graph)
                half = self.precision == "bf16" and graph in HALF
                config = self._config | {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
                try:
                    self._compiled[graph] = self._core.compile_model(self._core.read_model(path), "CPU", config)
                except Exception as error:  # openvino raises RuntimeError for everything
                    raise BackendError(f"openvino cannot load {path}: {first_line(error)}") from error
            return self._compiled[graph]

    def unload(self, graph: str) -> None:
        with self._loading, self._running:
            self._compiled.pop(graph, None)
            self._requests.pop(graph, None)

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = self._bundle.manifest.graphs[graph].outputs
        compiled = self.compiled(graph)
        with self._running:
            if graph not in self._requests:
                self._requests[graph] = compiled.create_infer_request()
            request = self._requests[graph]
            for name, value in feeds.items():
                request.set_tensor(name, self.tensor(value))
            self.infer(graph, request)
            return {name: request.get_tensor(name).data.copy() for name in names}

    def infer(self, graph: str, request: Any) -> None:
        """Run a request whose tensors are set. Raises: BackendError with openvino's reason."""
        try:
            request.infer()
        except Exception as error:
            raise BackendError(f"openvino failed in the graph {graph}: {first_line(error)}") from error

    def tensor(self, array: Array) -> Any:
        """Return a tensor on the array's own memory, which must be contiguous and outlive it."""
        return self._openvino.Tensor(array, shared_memory=True)

    def denoiser(self) -> "OpenVinoDenoiser":
        return OpenVinoDenoiser(self, self._bundle)


class OpenVinoDenoiser(HostArenas):
    """One infer request whose tensors are set when they change; latents go back and forth between two buffers."""

    def __init__(self, backend: OpenVinoBackend, bundle: Bundle) -> None:
        super().__init__(bundle.manifest.model)
        self._backend = backend
        self._request: Any = None
        self._set_to: dict[str, Array] = {}  # the tensors are views of these arrays and do not keep them alive

    def padded(self, tokens: int) -> int:
        return tokens  # every count is dynamic, so nothing is padded

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        if self._request is None:
            self._request = self._backend.compiled("denoiser").create_infer_request()
        query_runs, key_runs = runs(tables)
        self._set(
            source=tables.source,
            position=tables.position,
            frame=tables.frame,
            q_range=query_runs,
            kv_range=key_runs,
            text_range=tables.text_range,
            guidance_index=tables.guidance_index,
            guidance_weight=tables.guidance_weight,
        )
        self.take(latents, history)

    def step(self, row: Ints, update: Floats) -> None:
        after = self.spare()
        self._set(
            latents=self.latents,
            history=self.history,
            row=row,
            update=update,
            modulation=self.modulation,
            text_k=self.text_k,
            text_v=self.text_v,
            next_latents=after[0],
            next_history=after[1],
            velocity=self.guided,
        )
        self._backend.infer("denoiser", self._request)
        self.swap()

    def _set(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            if self._set_to.get(name) is not array:
                self._request.set_tensor(name, self._backend.tensor(array))
                self._set_to[name] = array


def _checked(precision: str | None, core: Any) -> str:
    if precision is None:
        return "fp32"
    if precision not in PRECISIONS:
        raise BackendError(f"backend 'openvino' computes in {' or '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU has no bfloat16 arithmetic (AVX-512 BF16 or AMX); use precision 'fp32'")
    return precision
