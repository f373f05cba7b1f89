"""ONNX Runtime: the reference backend, on any CPU it runs on; and on NVIDIA GPUs through its providers."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.backends.base import check_kind
from framert.runtime.backends.host import HostArenas, check_threads, first_line, give_back_memory
from framert.runtime.backends.onnxruntime_device import OnnxRuntimeDeviceDenoiser
from framert.runtime.backends.providers import check_provider, check_session, provider_list
from framert.runtime.backends.query_pieces import pieces
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError, FramertError
from framert.runtime.profiles import Capacity
from framert.runtime.sizes import carries_text
from framert.runtime.tables import Tables
from framert.runtime.windows import has_windows, windows

Output = TypeVar("Output")
FLOAT8, INT4 = "float8e4m3fn", "int4"  # as the manifest calls them


class OnnxRuntimeBackend:
    """Sessions of one bundle's graphs, made when first used.

    Args:
        bundle: an opened bundle with target "onnx".
        threads: threads inside an operator; None is one per physical core.
        precision: None; it runs every graph in the precision it was exported in.
        low_memory: hold one graph at a time, on its memory-mapped weights, and give memory back between graphs.
        provider: "cpu"; "cuda" or "tensorrt" where the installed onnxruntime has them. TensorRT's engines are built
            when a graph is first loaded, for ``Capacity()``, and kept in framert's cache.
    Raises: BackendError if onnxruntime or the provider is missing, or the bundle is made for something else.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None,
        precision: str | None = None,
        low_memory: bool = False,
        provider: str = "cpu",
    ) -> None:
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
        check_kind(bundle, self.name)
        check_provider(onnxruntime, provider, bundle)
        self._provider = provider
        self._bundle = bundle
        self._runtime = onnxruntime
        self._low_memory = low_memory
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._alone = threading.Lock()  # held during a call where only one graph may be in memory

    def options(self, graph: str) -> Any:
        """Return the session options of a graph."""
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        graphs = self._bundle.manifest.graphs
        if any(one.precision == FLOAT8 for one in graphs.values()):
            # It would fuse the Q/DQ of float8 into its integer product, which then refuses the type.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self._low_memory:
            options.enable_cpu_mem_arena = False  # it would keep its largest state
            if graphs[graph].precision != INT4:
                # Packed copies of the weights would lie beside the mapped file. Those of 4 bits are packed one by one
                # as they are read, and without that a product unpacks all of its matrix to fp32 each time it runs.
                options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    def session(self, graph: str) -> Any:
        """Return the InferenceSession of a graph, loading it on first use."""
        with self._loading:
            if graph not in self._sessions:
                if self._low_memory and self._sessions:
                    self._sessions.clear()
                    give_back_memory()
                path = self._bundle.graph_path(graph)
                try:
                    session = self._runtime.InferenceSession(
                        path,
                        self.options(graph),
                        providers=provider_list(
                            self._provider, self._bundle, graph, self._runtime.__version__, Capacity()
                        ),
                        enable_fallback=0,  # or it would run on the CPU after a line on stdout
                    )
                except FramertError:
                    raise
                except Exception as error:  # onnxruntime raises its own types, all from Exception
                    raise BackendError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
                check_session(session, self._provider, graph)
                self._sessions[graph] = session
            return self._sessions[graph]

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = list(self._bundle.manifest.graphs[graph].outputs)
        values = self.call(graph, lambda session: session.run(names, dict(feeds)))
        return dict(zip(names, values, strict=True))

    def call(self, graph: str, work: Callable[[Any], Output]) -> Output:
        """Return ``work(session)``. Raises: BackendError with onnxruntime's reason."""
        if self._low_memory:
            with self._alone:
                return self._call(graph, work)
        return self._call(graph, work)

    def _call(self, graph: str, work: Callable[[Any], Output]) -> Output:
        session = self.session(graph)
        try:
            return work(session)
        except Exception as error:
            raise BackendError(f"onnxruntime failed in the graph {graph}: {first_line(error)}") from error

    def denoiser(self) -> "OnnxRuntimeDenoiser | OnnxRuntimeDeviceDenoiser":
        if self._provider == "cpu":
            return OnnxRuntimeDenoiser(self, self._bundle)
        return OnnxRuntimeDeviceDenoiser(self, self._bundle, "cuda")

    def value(self, array: Array, device: str) -> Any:
        """Return a copy of an array as onnxruntime's own value on a device, "cpu" or "cuda".

        Raises: BackendError if it does not fit.
        """
        try:
            return self._runtime.OrtValue.ortvalue_from_numpy(array, device, 0)
        except Exception as error:
            raise BackendError(f"onnxruntime has no room on {device}: {first_line(error)}") from error


class OnnxRuntimeDenoiser(HostArenas):
    """Everything lies in host memory, which the CPU provider reads and writes without a copy."""

    def __init__(self, backend: OnnxRuntimeBackend, bundle: Bundle) -> None:
        super().__init__(bundle.manifest)
        self._backend = backend
        self._heads = bundle.manifest.model.heads
        # where text tokens are part of a sequence, the graph makes its keys' ranges from those of the queries
        self._joint = carries_text(bundle.manifest)
        self._windows = has_windows(bundle.manifest.graphs["denoiser"].inputs)
        self._tables: dict[str, Array] = {}

    def padded(self, tokens: int) -> int:
        return tokens  # every count is dynamic on the CPU, so nothing is padded

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        self._tables = tables.arrays() | (windows(tables) if self._windows else {})
        if not (self._joint or self._windows):
            self._tables |= pieces(tables, self._heads)
        self.take(latents, history)

    def step(self, row: Ints, update: Floats) -> None:
        next_latents, next_history = self.spare()
        state = {"latents": self.latents, "history": self.history, "row": row, "update": update}
        inputs = self._tables | self.arenas | state
        outputs = {"next_latents": next_latents, "next_history": next_history, "velocity": self.guided}

        def work(session: Any) -> None:
            binding = session.io_binding()  # new every time, in microseconds: it would keep an unloaded session alive
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)

        self._backend.call("denoiser", work)
        self.swap()
