"""The backends by name; each module is imported only when its backend is asked for."""

from importlib.util import find_spec

from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError, ConfigError

BACKENDS = ("onnxruntime", "openvino", "triton", "tensorrt")


def create(
    name: str,
    bundle: Bundle,
    *,
    threads: int | None,
    precision: str | None = None,
    impl: str | None = None,
    low_memory: bool = False,
    provider: str | None = None,
) -> Backend:
    """Return the named backend on a bundle, which is never replaced by another.

    Raises: BackendError for an unknown name; ConfigError for an option that the backend does not have.
    """
    if impl is not None and name != "triton":
        raise ConfigError(f"impl is {impl!r}, which only backend 'triton' takes; leave it out for {name!r}")
    if provider is not None and name != "onnxruntime":
        raise ConfigError(f"provider is {provider!r}, which only backend 'onnxruntime' takes; leave it out")
    if name == "onnxruntime":
        from framert.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(
            bundle, threads=threads, precision=precision, low_memory=low_memory, provider=provider or "cpu"
        )
    if name == "openvino":
        from framert.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, threads=threads, precision=precision, low_memory=low_memory)
    if name == "triton":
        if low_memory:
            raise ConfigError("low_memory is True, which backend 'triton' does not take; leave it out")
        if threads is not None:
            raise ConfigError(f"threads is {threads!r}, which backend 'triton' does not take; leave it out")
        return _triton(bundle, precision=precision, impl=impl)
    if name == "tensorrt":
        if threads is not None:
            raise ConfigError(f"threads is {threads!r}, which backend 'tensorrt' does not take; leave it out")
        if precision is not None:
            raise ConfigError(
                f"precision is {precision!r}, and engines keep the one they were built in (framert build --precision); "
                "leave it out"
            )
        from framert.runtime.backends.tensorrt.backend import TensorRtBackend

        return TensorRtBackend(bundle, low_memory=low_memory)
    raise BackendError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")


def _triton(bundle: Bundle, *, precision: str | None, impl: str | None) -> Backend:
    for package in ("torch", "triton", "onnx"):
        if find_spec(package) is None:
            raise BackendError(f"backend 'triton' needs the {package} package; pip install 'framert[triton]'")
    from framert.runtime.backends.triton.backend import TritonBackend

    return TritonBackend(bundle, impl=impl, precision=precision)
