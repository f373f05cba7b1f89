"""models/blocks to engines for three generations of GPUs at once, in every precision they have, for real."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from framert.export.precision import WORDS
from framert.export.tensorrt import builder as builder_module
from framert.export.tensorrt.builder import build
from framert.runtime.bundle import GRAPHS
from framert.runtime.manifest import Manifest
from framert.runtime.profiles import Capacity

CAPACITY = Capacity(tokens=(256,), sequences=3)
EVERYWHERE, ADA_ON, AMPERE = ["sm_86", "sm_89", "sm_120"], ["sm_89", "sm_120"], ["sm_86"]
LAYERS = ("text_encoder", "denoiser")  # what is quantized; the rest is fp16 as in the first row
BITS = {onnx.TensorProto.FLOAT: 32, onnx.TensorProto.INT8: 8, onnx.TensorProto.INT4: 4}
BITS |= {onnx.TensorProto.FLOAT8E4M3FN: 8}
# Most bytes of an engine that are no weights, for three targets. Weights of the denoiser that were folded to fp16 would
# add 7 MiB to int8 and fp8, and 10 MiB to int4.
CODE = {"denoiser": 22 << 20}
SMALL_CODE = 5 << 20


def weight_bytes(file: Path) -> int:
    """Return the bytes of a graph's weights when what is in fp32 is cast to fp16."""
    graph = onnx.load(file).graph
    bits = 0
    for one in graph.initializer:
        count = 1
        for side in one.dims:
            count *= side
        bits += count * (16 if one.data_type == onnx.TensorProto.FLOAT else BITS.get(one.data_type, 0))
    return bits // 8


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("word", "targets", "graphs"),
    [("fp16", EVERYWHERE, GRAPHS), ("int8", EVERYWHERE, GRAPHS), ("fp8", ADA_ON, LAYERS), ("int4", AMPERE, LAYERS)],
    ids=["fp16", "int8", "fp8", "int4"],
)
def test_blocks_builds(
    word: str, targets: list[str], graphs: tuple[str, ...], blocks_bundle: Path,
    quantized_blocks: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = blocks_bundle if word == "fp16" else quantized_blocks(word)
    plan: Any = builder_module.profiles.plan_profiles
    monkeypatch.setattr(
        builder_module.profiles,
        "plan_profiles",
        lambda *given, **more: {name: one for name, one in plan(*given, **more).items() if name in graphs},
    )
    built = build(
        source, tmp_path / "b", targets=targets, backend="tensorrt-rtx", precision="fp16", capacity=CAPACITY,
        progress=False,
    )  # fmt: skip
    assert [one.graph for one in built] == list(graphs)
    opened = Manifest.from_json(json.loads((tmp_path / "b" / "manifest.json").read_text()))
    assert opened.target["compute_capability"] == ",".join(targets)
    assert "attention" not in opened.target
    for one in built:
        quantized = word != "fp16" and one.graph in LAYERS
        assert opened.graphs[one.graph].precision == (WORDS[word] if quantized else "float16")
        assert one.plugins == 0
        # Every weight in the bits it was given.
        weights = weight_bytes(source / f"{one.graph}.onnx")
        assert weights < one.size < weights + CODE.get(one.graph, SMALL_CODE)
