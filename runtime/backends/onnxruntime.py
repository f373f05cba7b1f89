"""ONNX Runtime: the reference backend, on any CPU it runs on."""

import threading
from collections.abc import Mapping
from typing import Any

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.backends.host import HostArenas, check_threads, first_line
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.tables import Tables


class OnnxRuntimeBackend:
    """Sessions of one bundle's graphs, made when first used.

    Args:
        bundle: an opened bundle with target "onnx".
        threads: threads inside an operator; None is one per physical core.
        precision: None; it runs every graph in the precision it was exported in.
    Raises: BackendError if onnxruntime is missing or the bundle is made for something else.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None, precision: str | None = None) -> None:
        if precision is not None:
            raise BackendError(
                f"backend 'onnxruntime' was given precision {precision!r}; it runs a bundle in the precision it was "
                "exported in (framert export --precision ...); leave it out"
            )
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                "backend 'onnxruntime' needs the onnxruntime package; pip install 'framert[cpu]'"
            ) from error
        check_threads(threads)
        kind = bundle.manifest.target.get("kind")
        if kind != "onnx":
            raise BackendError(f"{bundle.path} is built for {kind!r}; backend 'onnxruntime' runs kind 'onnx'")
        self._bundle = bundle
        self._runtime = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads or 0
        self._options.log_severity_level = 3
        self._sessions: dict[str, Any] = {}
        self._loading = threading.Lock()

    def session(self, graph: str) -> Any:
        """Return the InferenceSession of a graph, loading it on first use."""
        with self._loading:
            if graph not in self._sessions:
                path = self._bundle.graph_path(graph)
                try:
                    self._sessions[graph] = self._runtime.InferenceSession(
                        path, self._options, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:  # onnxruntime raises its own types, all from Exception
                    raise BackendError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
            return self._sessions[graph]

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = list(self._bundle.manifest.graphs[graph].outputs)
        return dict(zip(names, self.call(graph, names, feeds), strict=True))

    def call(self, graph: str, names: list[str], feeds: Mapping[str, Array]) -> list[Any]:
        """Run a graph for the named outputs. Raises: BackendError with onnxruntime's reason."""
        session = self.session(graph)
        try:
            return list(session.run(names, dict(feeds)))
        except Exception as error:
            raise BackendError(f"onnxruntime failed in the graph {graph}: {first_line(error)}") from error

    def step(self, binding: Any) -> None:
        """Run the denoiser on what is bound. Raises: BackendError with onnxruntime's reason."""
        try:
            self.session("denoiser").run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"onnxruntime failed in the graph denoiser: {first_line(error)}") from error

    def denoiser(self) -> "OnnxRuntimeDenoiser":
        return OnnxRuntimeDenoiser(self, self._bundle)


class OnnxRuntimeDenoiser(HostArenas):
    """Everything lies in host memory, bound once: the CPU provider reads and writes it without a copy."""

    def __init__(self, backend: OnnxRuntimeBackend, bundle: Bundle) -> None:
        super().__init__(bundle.manifest.model)
        self._backend = backend
        self._binding: Any = None
        self._bound: dict[str, Array] = {}  # the binding points at these arrays and does not keep them alive

    def padded(self, tokens: int) -> int:
        return tokens  # every count is dynamic on the CPU, so nothing is padded

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        if self._binding is None:
            self._binding = self._backend.session("denoiser").io_binding()
        self._inputs(
            source=tables.source,
            position=tables.position,
            frame=tables.frame,
            q_range=tables.q_range,
            kv_range=tables.kv_range,
            text_range=tables.text_range,
            guidance_index=tables.guidance_index,
            guidance_weight=tables.guidance_weight,
        )
        self.take(latents, history)

    def step(self, row: Ints, update: Floats) -> None:
        self._inputs(
            latents=self.latents,
            history=self.history,
            row=row,
            update=update,
            modulation=self.modulation,
            text_k=self.text_k,
            text_v=self.text_v,
        )
        next_latents, next_history = self.spare()
        self._outputs(next_latents=next_latents, next_history=next_history, velocity=self.guided)
        self._backend.step(self._binding)
        self.swap()

    def _inputs(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            if self._bound.get(name) is not array:
                self._binding.bind_cpu_input(name, array)
                self._bound[name] = array

    def _outputs(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            if self._bound.get(name) is not array:
                self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                self._bound[name] = array
