"""A bundle of ONNX graphs that TensorRT takes in one piece each: for ONNX Runtime's provider, and for trtexec.

The provider cuts a graph where TensorRT's parser stops, and takes sizes to build for only where it did not. The loop
over sequences that a bundle's attention is would cut the denoiser in every layer; padded attention does not. Operators
that TensorRT 10.3 lacks are written in older ones. trtexec comes with TensorRT and builds engines without Python, which
JetPack 6 has in a version too old for framert; the script that calls it is part of the bundle.
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from framert.export.tensorrt.lower import OPERATORS
from framert.export.tensorrt.prepare import Prepared, prepare
from framert.export.tensorrt.source import beside_graphs, open_exported
from framert.runtime.bundle import Bundle, file_specs, new_bundle, write_manifest
from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Graph
from framert.runtime.profiles import Capacity, single_profile, written

SCRIPT = "trtexec.sh"
HEAD = """#!/bin/sh
# Builds an engine of each graph beside it, for this machine, with the trtexec of its TensorRT.
set -e
cd "$(dirname "$0")"
TRTEXEC=${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}
"""


def write_padded(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str | None = None,
    capacity: Capacity | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Write a bundle of the same graphs, with padded attention and, if asked for, cast; ONNX Runtime runs it anywhere.

    Args:
        bundle: a folder of ONNX graphs that ``framert export`` made.
        output: the new bundle's folder; it appears whole or not at all.
        precision: "fp16" or "bf16" casts what graphs have in fp32.
        capacity: largest sizes of what the script builds; None is ``Capacity()``.
    Returns: ``output``.
    Raises: BundleError or ConfigError that says what does not fit.
    """
    opened = open_exported(bundle)
    if precision not in (None, "fp16", "bf16"):
        raise ConfigError(f"precision is {precision!r}; choose one of fp16, bf16, or leave it out")
    with new_bundle(output, force=force) as folder:
        graphs: dict[str, Graph] = {}
        for name in tqdm(opened.manifest.graphs, unit="graph", disable=not progress):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = prepare(opened, name, precision, Path(work), missing=OPERATORS)
                graphs[name] = replace(made.graph, files=_place(made, folder))
        for name in beside_graphs(opened.manifest):
            shutil.copyfile(opened.path / name, folder / name)
        commands = [_command(name, graph, opened, capacity or Capacity()) for name, graph in graphs.items()]
        (folder / SCRIPT).write_text(HEAD + "".join(commands), encoding="utf-8")
        origin = {"onnx": {file: spec.sha256 for file, spec in opened.manifest.files.items()}, "attention": "padded"}
        provenance = {**opened.manifest.provenance, "built": origin}
        manifest = replace(opened.manifest, graphs=graphs, files=file_specs(folder), verified={}, provenance=provenance)
        write_manifest(folder, manifest)
    return Path(output)


def _command(name: str, graph: Graph, bundle: Bundle, capacity: Capacity) -> str:
    words = written(graph.inputs, single_profile(bundle.manifest, name, capacity))
    shapes = "".join(f" --{word}Shapes={text}" for word, text in words.items())  # none where all sizes are fixed
    files = f"--onnx={graph.files[0]} --saveEngine={name}.engine"
    return f'"$TRTEXEC" {files} --stronglyTyped --noTF32 --skipInference{shapes}\n'


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
