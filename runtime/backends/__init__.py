"""The backends by name; each module is imported only when its backend is asked for."""

from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError

BACKENDS = ("onnxruntime",)


def create(name: str, bundle: Bundle, *, threads: int | None) -> Backend:
    """Return the named backend on a bundle. Raises: BackendError for an unknown name; never falls back to another."""
    if name == "onnxruntime":
        from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, threads=threads)
    raise BackendError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
