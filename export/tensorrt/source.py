"""The bundle that engines and padded bundles are made from."""

import os

from framert.export.tensorrt.body import WINDOWS
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BundleError
from framert.runtime.manifest import Manifest


def open_exported(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle of graphs as ``framert export`` made them.

    Raises: BundleError if it holds engines, or its attention is padded already: no plugin takes that.
    """
    opened = Bundle.open(path)
    if (kind := opened.manifest.target.get("kind")) != "onnx":
        raise BundleError(f"{path} is already built for {kind!r}; give the bundle that framert export made")
    if set(WINDOWS) & set(opened.manifest.graphs["denoiser"].inputs):
        raise BundleError(
            f"{path} has padded attention already; run it with backend='onnxruntime', or give the bundle that framert "
            "export made"
        )
    return opened


def beside_graphs(manifest: Manifest) -> list[str]:
    """Return the files of a bundle that are no graph's: its tokenizers."""
    used = {file for graph in manifest.graphs.values() for file in graph.files}
    return [file for file in manifest.files if file not in used]
