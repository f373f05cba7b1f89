"""Timing caches: what TensorRT measured while it chose kernels, kept between builds that may share it."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from framert.export.tensorrt.api import Api


def cache_file(folder: Path, api: Api, gpu: str, kernels: str) -> Path:
    """Return the file for one GPU, TensorRT version and set of plugin kernels.

    Ahead-of-time plugins have no identity in TensorRT's own keys, so a changed kernel must mean another file.

    Args:
        gpu: the device's name. kernels: digest of the plugins' kernels, empty without plugins.
    """
    digest = hashlib.sha256("\0".join((gpu, api.flavour, api.version, kernels)).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu}-{api.flavour}-{api.version}")
    return folder / f"{readable}-{digest}.timing"


def attach(config: Any, file: Path) -> bool:
    """Give a builder configuration the cache of a file; return False if it starts empty, being absent or not usable."""
    content = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(content) if content else None  # TensorRT too says None of a damaged one
    if cache is not None and config.set_timing_cache(cache, False):
        return True
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False


def store(config: Any, file: Path) -> None:
    """Write what the configuration's cache holds now: beside the file, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(config.get_timing_cache().serialize())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
