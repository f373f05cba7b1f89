"""ONNX Runtime: the reference backend, on any CPU it runs on."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError, ConfigError
from framert.runtime.tables import Tables

MAX_THREADS = 1024  # onnxruntime starts whatever it is told to, and takes the machine down


class OnnxRuntimeBackend:
    """Sessions of one bundle's graphs, made when first used.

    Args:
        bundle: an opened bundle with target "onnx".
        threads: threads inside an operator; None is one per physical core.
    Raises: BackendError if onnxruntime is missing or the bundle is made for something else.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                "backend 'onnxruntime' needs the onnxruntime package; pip install 'framert[cpu]'"
            ) from error
        whole = isinstance(threads, int) and not isinstance(threads, bool)
        if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
            raise ConfigError(
                f"threads is {threads!r}; give a whole number from 1 to {MAX_THREADS}, or None for all cores"
            )
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
                    raise BackendError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
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
            raise BackendError(f"onnxruntime failed in the graph {graph}: {_first_line(error)}") from error

    def denoiser(self) -> "OnnxRuntimeDenoiser":
        return OnnxRuntimeDenoiser(self, self._bundle)


class OnnxRuntimeDenoiser:
    """Arenas and latents in host memory, which the CPU provider reads without a copy."""

    OUTPUTS = ("next_latents", "next_history", "velocity")

    def __init__(self, backend: OnnxRuntimeBackend, bundle: Bundle) -> None:
        model = bundle.manifest.model
        self._backend = backend
        self._text_k = np.zeros((model.depth, 0, model.kv_heads, model.head_dim), np.float32)
        self._text_v = self._text_k.copy()
        self._modulation = np.zeros((0, 4 * model.depth + 1, model.hidden_size), np.float32)
        self._feeds: dict[str, Array] = {}
        self._latents = self._history = self._velocity = np.zeros((0, model.token_width), np.float32)

    def reserve(self, *, text: int, rows: int) -> None:
        self._text_k = _grown(self._text_k, text, axis=1)
        self._text_v = _grown(self._text_v, text, axis=1)
        self._modulation = _grown(self._modulation, rows, axis=0)

    def write_text(self, begin: int, text_k: Array, text_v: Array) -> None:
        self._text_k[:, begin : begin + text_k.shape[1]] = text_k
        self._text_v[:, begin : begin + text_v.shape[1]] = text_v

    def write_modulation(self, begin: int, modulation: Array) -> None:
        self._modulation[begin : begin + len(modulation)] = modulation

    def padded(self, tokens: int) -> int:
        return tokens  # every count is dynamic on the CPU, so nothing is padded

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        self._feeds = {
            "source": tables.source,
            "position": tables.position,
            "frame": tables.frame,
            "q_range": tables.q_range,
            "kv_range": tables.kv_range,
            "text_range": tables.text_range,
            "guidance_index": tables.guidance_index,
            "guidance_weight": tables.guidance_weight,
        }
        self._latents, self._history = latents, history

    def step(self, row: Ints, update: Floats) -> None:
        feeds = self._feeds | {
            "latents": self._latents,
            "history": self._history,
            "row": row,
            "modulation": self._modulation,
            "text_k": self._text_k,
            "text_v": self._text_v,
            "update": update,
        }
        self._latents, self._history, self._velocity = self._backend.call("denoiser", list(self.OUTPUTS), feeds)

    def state(self) -> tuple[Floats, Floats]:
        return self._latents, self._history

    def velocity(self) -> Floats:
        return self._velocity


def _grown(store: Floats, length: int, *, axis: int) -> Floats:
    """Return ``store`` with at least ``length`` entries along ``axis``, its contents kept."""
    if store.shape[axis] >= length:
        return store
    shape = list(store.shape)
    shape[axis] = length
    larger = np.zeros(shape, np.float32)
    larger[tuple(slice(size) for size in store.shape)] = store
    return larger


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
