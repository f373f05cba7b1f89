"""ONNX Runtime's execution providers: which is asked for, with which options, and that it is the one that runs.

TensorRT's provider takes a graph whole or in parts. Only a graph that it takes whole can be given the sizes to build
for, so the denoiser, whose attention is a loop in the bundle, is given them in a bundle with padded attention alone.
"""

import hashlib
import sysconfig
from pathlib import Path
from typing import Any

from framert.runtime.bundle import Bundle
from framert.runtime.checkpoints import cache_folder
from framert.runtime.errors import BackendError, ConfigError
from framert.runtime.manifest import Graph
from framert.runtime.profiles import Capacity, single_profile, written
from framert.runtime.windows import has_windows

NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# A graph's precision -> the option by which TensorRT may compute in it. Those missing it has not through ONNX Runtime.
TENSORRT_PRECISIONS = {
    "float32": None, "float16": "trt_fp16_enable", "bfloat16": "trt_bf16_enable", "int8": "trt_int8_enable"
}  # fmt: skip
INSTALL = "pip uninstall -y onnxruntime && pip install 'framert[gpu]'"
JETSON = "on a Jetson install NVIDIA's wheel, see docs/jetson.md"


def check_provider(runtime: Any, provider: str, bundle: Bundle) -> None:
    """Refuse what cannot run, before anything is loaded.

    Raises: ConfigError for an unknown provider; BackendError if onnxruntime has it not, or it has not a precision.
    """
    if provider not in NAMES:
        raise ConfigError(f"provider is {provider!r}; choose one of {', '.join(NAMES)}")
    if NAMES[provider] not in runtime.get_available_providers():
        there = [word for word, name in NAMES.items() if name in runtime.get_available_providers()]
        remedy = JETSON if "aarch64" in sysconfig.get_platform() else INSTALL
        raise BackendError(
            f"provider {provider!r} is not in the installed onnxruntime {runtime.__version__}, which has "
            f"{', '.join(there)}; {remedy}"
        )
    if provider == "tensorrt":
        for name, graph in bundle.manifest.graphs.items():
            if graph.precision not in TENSORRT_PRECISIONS:
                raise BackendError(
                    f"{name} is in {graph.precision}, which provider 'tensorrt' does not run; export it in fp32, fp16, "
                    "bf16 or int8, or use backend='tensorrt'"
                )


def provider_list(
    provider: str, bundle: Bundle, graph: str, version: str, capacity: Capacity
) -> list[tuple[str, dict[str, Any]]]:
    """Return what a session of a graph is made with.

    Args:
        provider: checked by ``check_provider``. version: onnxruntime's.
        capacity: sizes that engines are built for.
    """
    if provider != "tensorrt":
        return [(NAMES[provider], {})]
    return [
        (NAMES["tensorrt"], tensorrt_options(bundle, graph, version, capacity)),
        (NAMES["cuda"], {}),  # for what TensorRT does not take
    ]


def tensorrt_options(bundle: Bundle, graph: str, version: str, capacity: Capacity) -> dict[str, Any]:
    """Return the options of TensorRT's provider for a graph; its cache's folder is made."""
    folder = engine_cache(bundle, version, capacity) / graph
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"cannot make {folder} for engines: {error.strerror}; set FRAMERT_CACHE") from error
    options: dict[str, Any] = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": graph,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }
    spec = bundle.manifest.graphs[graph]
    if (allow := TENSORRT_PRECISIONS[spec.precision]) is not None:
        options[allow] = True
    if taken_whole(graph, spec):
        profile = single_profile(bundle.manifest, graph, capacity)
        options |= {f"trt_profile_{word}_shapes": text for word, text in written(spec.inputs, profile).items()}
    return options


def taken_whole(graph: str, spec: Graph) -> bool:
    """Return whether TensorRT takes a graph in one piece: all but a denoiser whose attention is a loop."""
    return graph != "denoiser" or has_windows(spec.inputs)


def engine_cache(bundle: Bundle, version: str, capacity: Capacity) -> Path:
    """Return the folder of a bundle's engines in framert's cache.

    Its name follows the bundle's files, onnxruntime's version and the sizes; GPU and TensorRT are in the names that
    the provider gives its files.
    """
    files = sorted(spec.sha256 for spec in bundle.manifest.files.values())
    key = hashlib.sha256(f"{version} {capacity} {' '.join(files)}".encode()).hexdigest()[:16]
    return cache_folder() / "onnxruntime-tensorrt" / key


def check_session(session: Any, provider: str, graph: str) -> None:
    """Raises: BackendError unless the session runs on the provider: onnxruntime only warns when it cannot."""
    running = session.get_providers()
    if not running or running[0] != NAMES[provider]:
        raise BackendError(
            f"onnxruntime could not start provider {provider!r} for {graph} and took {', '.join(running)}; is there a "
            f"GPU, and are CUDA{', cuDNN and TensorRT 10' if provider == 'tensorrt' else ' and cuDNN'} installed? "
            "framert doctor says"
        )
