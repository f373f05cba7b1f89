"""A bundle of ONNX graphs whose denoiser TensorRT takes in one piece: for ONNX Runtime's TensorRT provider.

The provider cuts a graph where TensorRT's parser stops, and takes sizes to build for only where it did not. The loop
over sequences that a bundle's attention is would cut the denoiser in every layer; padded attention does not.
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from framert.export.tensorrt.body import WINDOWS
from framert.export.tensorrt.prepare import Prepared, prepare
from framert.runtime.bundle import Bundle, file_specs, new_bundle, write_manifest
from framert.runtime.errors import BundleError, ConfigError
from framert.runtime.manifest import Graph


def write_padded(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Write a bundle of the same graphs, with padded attention and, if asked for, cast; ONNX Runtime runs it anywhere.

    Args:
        bundle: a folder of ONNX graphs that ``framert export`` made.
        output: the new bundle's folder; it appears whole or not at all.
        precision: "fp16" or "bf16" casts what graphs have in fp32.
    Returns: ``output``.
    Raises: BundleError or ConfigError that says what does not fit.
    """
    opened = Bundle.open(bundle)
    if (kind := opened.manifest.target.get("kind")) != "onnx":
        raise BundleError(f"{bundle} is built for {kind!r}; give the bundle that framert export made")
    if set(WINDOWS) <= set(opened.manifest.graphs["denoiser"].inputs):
        raise BundleError(f"{bundle} has padded attention already; run it with backend='onnxruntime'")
    if precision not in (None, "fp16", "bf16"):
        raise ConfigError(f"precision is {precision!r}; choose one of fp16, bf16, or leave it out")
    with new_bundle(output, force=force) as folder:
        graphs: dict[str, Graph] = {}
        for name in tqdm(opened.manifest.graphs, unit="graph", disable=not progress):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = prepare(opened, name, precision, Path(work))
                graphs[name] = replace(made.graph, files=_place(made, folder))
        for name in opened.manifest.files:
            if not any(name in graph.files for graph in opened.manifest.graphs.values()):
                shutil.copyfile(opened.path / name, folder / name)
        origin = {"onnx": {file: spec.sha256 for file, spec in opened.manifest.files.items()}, "attention": "padded"}
        provenance = {**opened.manifest.provenance, "built": origin}
        manifest = replace(opened.manifest, graphs=graphs, files=file_specs(folder), verified={}, provenance=provenance)
        write_manifest(folder, manifest)
    return Path(output)


def _place(made: Prepared, folder: Path) -> tuple[str, ...]:
    """Write a prepared graph to a folder, with the data file it reads, and return the names of both."""
    names = [made.file.name]
    if made.content is None:
        shutil.copyfile(made.file, folder / made.file.name)
    else:
        (folder / made.file.name).write_bytes(made.content)
    data = made.file.with_name(f"{made.file.name}.data")
    if data.exists():
        shutil.copyfile(data, folder / data.name)
        names.append(data.name)
    return tuple(names)
