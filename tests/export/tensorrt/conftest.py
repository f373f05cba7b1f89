"""Fixtures of the TensorRT tests."""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from framert.runtime.bundle import Bundle, file_specs, write_manifest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def blocks_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of models/blocks, as it is committed. Read it, never change it."""
    folder = tmp_path_factory.mktemp("blocks")
    with tarfile.open(ROOT / "models" / "blocks.bundle.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(folder)
    (bundle,) = folder.iterdir()
    return bundle


@pytest.fixture(scope="session")
def quantized_blocks(blocks_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that quantizes denoiser and text encoder of models/blocks: "int8", "fp8" or "int4".

    The products are rewritten as ``framert export --target tensorrt`` does, but nothing is calibrated: the graphs have
    the export's operators and sizes, not its values. benchmarks/bench_build.py builds what is exported.
    """
    made: dict[str, Path] = {}

    def quantize(word: str) -> Path:
        if word not in made:
            made[word] = _quantized(blocks_bundle, tmp_path_factory.mktemp("quantized") / f"{word}.bundle", word)
        return made[word]

    return quantize


def _quantized(source: Path, folder: Path, word: str) -> Path:
    import onnx_ir as ir

    from framert.export.precision import WORDS
    from framert.export.quantize.recipe import Recipe
    from framert.export.weights import Weight, write_model

    shutil.copytree(source, folder)
    manifest = Bundle.open(folder).manifest
    graphs = dict(manifest.graphs)
    for name in ("text_encoder", "denoiser"):
        model = ir.load(folder / f"{name}.onnx")
        weights = {}
        for key, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if tensor is not None and tensor.dtype is ir.DataType.FLOAT and len(tensor.shape) == 2:
                weights[key] = Weight(tuple(tensor.shape.numpy()), tensor.numpy)
                value.const_value = None
                del model.graph.initializers[key]
        made = Recipe({}).apply(model, name, word, weights, signed=True)
        assert len(made) > len(weights)
        files = write_model(model, made, [], folder, name)
        graphs[name] = replace(graphs[name], files=files, precision=WORDS[word])
    write_manifest(folder, replace(manifest, graphs=graphs, files=file_specs(folder)))
    return folder


@pytest.fixture
def rtx() -> None:
    """Skip where TensorRT-RTX is not installed."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")
