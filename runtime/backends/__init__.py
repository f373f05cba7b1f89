"""The backends by name; each module is imported only when its backend is asked for."""

from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError

BACKENDS = ("onnxruntime", "openvino")


def create(name: str, bundle: Bundle, *, threads: int | None, precision: str | None = None) -> Backend:
    """Return the named backend on a bundle. Raises: BackendError for an unknown name; never falls back to another."""
    if name == "onnxruntime":
        from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, threads=threads, precision=precision)
    if name == "openvino":
        from framert.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, threads=threads, precision=precision)
    raise BackendError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
