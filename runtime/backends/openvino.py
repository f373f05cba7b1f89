"""OpenVINO on the CPU: reads the same bundle, and computes in bfloat16 where the CPU can."""

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.backends import openvino_attention, openvino_rotary, openvino_runs
from framert.runtime.backends.base import check_attention, check_kind
from framert.runtime.backends.host import HostArenas, check_threads, give_back_memory
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.manifest import Manifest
from framert.runtime.sizes import carries_text, text_length
from framert.runtime.tables import Tables

PRECISIONS = ("fp32", "bf16")
# What bf16 computes in bfloat16. The conditioner's products serve every step, and the autoencoder makes the pixels.
HALF = ("text_encoder", "denoiser")
FRAMES = 2  # of a usual request, where a bundle has several


class OpenVinoBackend:
    """Compiled models of one bundle's graphs, made when first used.

    Args:
        bundle: an opened bundle with target "onnx".
        threads: threads inside an operator; None is one per physical core.
        precision: "fp32", or "bf16" for denoiser and text encoder on a CPU that has it; None is "fp32". Quantized parts
            of a bundle stay what they are.
        low_memory: hold one graph at a time and give memory back between graphs.
    Raises: BackendError if openvino is missing, the bundle is made for something else or in 16 bits, or the CPU has no
        bf16.
    """

    name = "openvino"

    def __init__(
        self, bundle: Bundle, *, threads: int | None, precision: str | None = None, low_memory: bool = False
    ) -> None:
        openvino = import_openvino()
        check_threads(threads)
        check_kind(bundle, self.name)
        check_attention(bundle, self.name)
        stored = bundle.manifest.graphs["denoiser"].precision
        if stored in ("float16", "bfloat16"):
            raise BackendError(
                f"{bundle.path} has a denoiser in {stored}, which backend 'openvino' does not read; export it in fp32 "
                "and give precision 'bf16', or take another backend"
            )
        self._core = openvino.Core()
        self._core.add_extension([openvino_attention.extension(_logits(bundle.manifest)), openvino_rotary.extension()])
        self.precision = _checked(precision, self._core)
        self._bundle = bundle
        self._openvino = openvino
        # Fused kernels that openvino generates ("snippets") gave wrong attention after a sequence of one token, refused
        # small models in bf16, and took no less processor time (2026.4). Pinned threads begin at the first core in
        # every process: two processes of one thread would share it.
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "SNIPPETS_MODE": "DISABLE", "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._low_memory = low_memory
        self._compiled: dict[str, Any] = {}
        self._requests: dict[str, Any] = {}  # of graphs other than the denoiser
        self._denoisers: WeakSet[OpenVinoDenoiser] = WeakSet()
        self._lock = threading.RLock()  # a request holds one call's tensors, and the CPU runs one call at a time

    def compiled(self, graph: str) -> Any:
        """Return the CompiledModel of a graph, loading it on first use."""
        with self._lock:
            if graph not in self._compiled:
                if self._low_memory:
                    self._unload()
                path = self._bundle.graph_path(graph)
                half = self.precision == "bf16" and graph in HALF
                config = self._config | {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
                self._compiled[graph] = self._compile(path, config)
            return self._compiled[graph]

    def _compile(self, path: Path, config: dict[str, Any]) -> Any:
        try:
            return self._core.compile_model(self._core.read_model(path), "CPU", config)
        except Exception as error:  # openvino raises RuntimeError for everything
            raise BackendError(f"openvino cannot load {path}: {_reason(error)}") from error

    def _unload(self) -> None:
        for denoiser in self._denoisers:
            denoiser.forget()
        self._requests.clear()
        self._compiled.clear()
        give_back_memory()

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = self._bundle.manifest.graphs[graph].outputs
        with self._lock:
            compiled = self.compiled(graph)
            if graph not in self._requests:
                self._requests[graph] = compiled.create_infer_request()
            request = self._requests[graph]
            self.infer(graph, request, feeds)
            return {name: request.get_tensor(name).data.copy() for name in names}

    def step(self, denoiser: "OpenVinoDenoiser", arrays: Mapping[str, Array]) -> None:
        """Run the denoiser on arrays for all its inputs and outputs."""
        with self._lock:
            compiled = self.compiled("denoiser")
            if denoiser.request is None:
                denoiser.request = compiled.create_infer_request()
            self.infer("denoiser", denoiser.request, arrays)

    def infer(self, graph: str, request: Any, arrays: Mapping[str, Array]) -> None:
        """Run a request on contiguous arrays, in place. Raises: BackendError with openvino's reason."""
        try:
            for name, array in arrays.items():
                request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
            request.infer()
        except Exception as error:
            raise BackendError(f"openvino failed in the graph {graph}: {_reason(error)}") from error

    def denoiser(self) -> "OpenVinoDenoiser":
        made = OpenVinoDenoiser(self, self._bundle)
        with self._lock:  # another thread may be unloading them all
            self._denoisers.add(made)
        return made


class OpenVinoDenoiser(HostArenas):
    """One infer request on arrays in host memory, which are read and written without a copy."""

    def __init__(self, backend: OpenVinoBackend, bundle: Bundle) -> None:
        super().__init__(bundle.manifest)
        self._backend = backend
        self._runs: list[openvino_runs.Run] = []
        self.request: Any = None

    def forget(self) -> None:
        """Let go of the loaded graph; the next step loads it again."""
        self.request = None

    def padded(self, tokens: int) -> int:
        return tokens  # every count is dynamic, so nothing is padded

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        self._runs = openvino_runs.split(tables)
        self.take(latents, history)

    def step(self, row: Ints, update: Floats) -> None:
        next_latents, next_history = self.spare()
        by_slot = {
            "latents": self.latents,
            "history": self.history,
            "update": update,
            "next_latents": next_latents,
            "next_history": next_history,
            "velocity": self.guided,
        }
        for run in self._runs:
            own = {name: array[run.slots] for name, array in by_slot.items()}
            self._backend.step(self, {**run.tables, **self.arenas, **own, "row": row[run.frames]})
        self.swap()


def import_openvino() -> Any:
    """Return the openvino module, imported without its telemetry: it reports every import to a server otherwise.

    Raises: BackendError if it is not installed.
    """
    name = "openvino_telemetry"
    present = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail, and openvino then does without
    try:
        import openvino
    except ImportError as error:
        raise BackendError("backend 'openvino' needs the openvino package; pip install 'framert[openvino]'") from error
    finally:
        del sys.modules[name]
        if present is not None:
            sys.modules[name] = present
    return openvino


def _logits(manifest: Manifest) -> int:
    """Return the logits of one head in a request of the native size with all its branches."""
    model = manifest.model
    tokens = min(FRAMES, model.max_frames) * (manifest.native_side // (model.vae_factor * model.patch)) ** 2
    if carries_text(manifest):
        tokens += text_length(manifest)
    return manifest.guidance_branches * tokens**2


def _checked(precision: str | None, core: Any) -> str:
    if precision is None:
        return "fp32"
    if precision not in PRECISIONS:
        raise BackendError(f"backend 'openvino' computes in {' or '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU has no bfloat16 arithmetic (AVX-512 BF16 or AMX); use precision 'fp32'")
    return precision


def _reason(error: Exception) -> str:
    """Return what openvino says, without its own source lines."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from")) or type(error).__name__
