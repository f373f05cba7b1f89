"""Kernels that TensorRT-RTX compiled on this GPU, kept between processes: it compiles for each shape it meets first."""

import contextlib
import os
import re
from typing import Any

from framert.runtime.checkpoints import cache_folder


class KernelCache:
    """The compiled kernels of one engine.

    Args:
        name: of the file: what the kernels depend on. TensorRT-RTX also refuses what another machine made.
    """

    def __init__(self, name: str) -> None:
        self.file = cache_folder() / "tensorrt-rtx" / f"{re.sub(r'[^A-Za-z0-9._]+', '-', name)}.kernels"
        self._cache: Any = None
        self._stored = 0

    def attach(self, config: Any) -> None:
        """Give a runtime configuration the kernels of the file; it starts empty if that is missing or refused."""
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            content = self.file.read_bytes()
            if self._cache.deserialize(content):
                self._stored = len(content)
        config.set_runtime_cache(self._cache)

    def store(self) -> None:
        """Write the kernels if there are more than before: beside the file, then renamed. A full disk is no reason to
        fail.
        """
        content = bytes(self._cache.serialize())
        if len(content) == self._stored:
            return
        temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self.file)
            self._stored = len(content)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def file_name(graph: str, sha256: str, gpu: str, version: str) -> str:
    """Return the name of an engine's kernels on a GPU."""
    return f"{graph}-{sha256[:16]}-{gpu}-{version}"
