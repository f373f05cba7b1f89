"""Bundle to engines, for real with TensorRT-RTX: what is written, what it says of itself, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framert.export.tensorrt import builder as builder_module
from framert.export.tensorrt import memory
from framert.export.tensorrt.builder import Options, build
from framert.runtime.backends import create
from framert.runtime.bundle import GRAPHS, Bundle, sha256, write_manifest
from framert.runtime.errors import BackendError, BundleError, ConfigError
from framert.runtime.profiles import Capacity, Profile

# Small: what is tested is the same at any size.
ONE_PROFILE = Capacity(tokens=(256,), sequences=3)
GIB = 1 << 30
LEVELS = [(0, set()), (1, {"warning", "info"}), (2, {"warning", "info", "verbose"})]


def rtx_build(bundle: Path, output: Path, **more: Any) -> Any:
    given = {"targets": ["sm_89"], "backend": "tensorrt-rtx", "capacity": ONE_PROFILE, "progress": False}
    return build(bundle, output, **given | more)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Profile], None]:
    """Return a function that makes ``build`` build one graph alone, with one profile."""

    def replace_plan(graph: str, profile: Profile) -> None:
        monkeypatch.setattr(builder_module.profiles, "plan_profiles", lambda *_, **__: {graph: [profile]})

    return replace_plan


@pytest.fixture(scope="module")
def engines(blocks_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of models/blocks for two GPUs at once, with two profiles. Read it, never change it."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")
    output = tmp_path_factory.mktemp("engines") / "blocks.rtx"
    capacity = Capacity(tokens=(128,), sequences=4, side=64)
    rtx_build(blocks_bundle, output, targets=["sm_86", "sm_120"], capacity=capacity)
    return output


def test_the_manifest_says_what_the_engines_are(blocks_bundle: Path, engines: Path) -> None:
    import tensorrt_rtx

    opened, source = Bundle.open(engines).manifest, Bundle.open(blocks_bundle).manifest
    assert opened.target == {
        "kind": "tensorrt-rtx",
        "version": tensorrt_rtx.__version__,
        "compute_capability": "sm_86,sm_120",
    }
    assert (opened.model, opened.schedule, opened.native_side) == (source.model, source.schedule, source.native_side)
    assert opened.verified == {}
    origin = opened.provenance["built"]
    assert origin["onnx"]["denoiser.onnx"] == sha256(blocks_bundle / "denoiser.onnx")
    assert set(origin["seconds"]) == set(GRAPHS)
    assert origin["capacity"]["tokens"] == [128]
    assert {file.name for file in engines.iterdir()} == {
        "manifest.json",
        "profiles.json",
        "tokenizer.json",
        *(f"{name}.engine" for name in GRAPHS),
    }


def test_the_profile_table_covers_every_free_axis(engines: Path) -> None:
    table = json.loads((engines / "profiles.json").read_text())
    graphs = Bundle.open(engines).manifest.graphs
    for name, graph in graphs.items():
        free = {side for spec in graph.inputs.values() for side in spec.shape if isinstance(side, str)}
        assert all(set(profile) == free for profile in table[name])
    assert [profile["longest"][2] for profile in table["denoiser"]] == [64, 32]
    windows = {name: (spec.dtype, spec.shape) for name, spec in graphs["denoiser"].inputs.items() if "window" in name}
    assert windows == {"window": ("int32", ("longest",)), "text_window": ("int32", ("text_longest",))}


def test_engines_are_for_their_backend_alone(engines: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(BackendError, match="is built for 'tensorrt-rtx'; backend 'onnxruntime' runs kind 'onnx'"):
        create("onnxruntime", Bundle.open(engines), threads=None)


def test_engines_are_not_built_again(engines: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is already built for 'tensorrt-rtx'; give the bundle that framert export"):
        rtx_build(engines, tmp_path / "b")


def test_a_damaged_engine_is_refused(engines: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(engines, tmp_path / "b")
    engine = copy / "conditioner.engine"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    with pytest.raises(BundleError, match=r"conditioner.engine was changed after export"):
        Bundle.open(copy)
    engine.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"conditioner.engine is truncated"):
        Bundle.open(copy)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("verbosity", "levels"), LEVELS)
def test_lines_reach_the_user_as_far_as_asked(
    verbosity: int, levels: set[str], blocks_bundle: Path, tmp_path: Path, only: Any
) -> None:
    only("text_encoder", {"length": (1, 8, 16)})
    lines: list[str] = []
    rtx_build(blocks_bundle, tmp_path / "b", options=Options(verbosity=verbosity), say=lines.append)
    assert {line.split(":")[0] for line in lines} == levels


@pytest.fixture
def other_precision(blocks_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose manifest says that its denoiser is in fp8."""
    copy = Path(shutil.copytree(blocks_bundle, tmp_path / "other"))
    manifest = Bundle.open(copy).manifest
    graphs = dict(manifest.graphs)
    graphs["denoiser"] = replace(graphs["denoiser"], precision="float8e4m3fn")
    write_manifest(copy, replace(manifest, graphs=graphs))
    return copy


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"targets": ["sm_86"]}, "denoiser is in fp8, which sm_86 does not have; it has fp32, fp16, bf16, int8, int4"),
        ({"precision": "fp16", "targets": ["sm_86"]}, "denoiser is in fp8, which sm_86 does not have"),
        (
            {"precision": "int8"},
            "precision is 'int8'; build casts fp32 to fp16 or bf16, and framert export",
        ),
    ],
    ids=str,
)
def test_precisions_that_are_refused(other_precision: Path, tmp_path: Path, more: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        rtx_build(other_precision, tmp_path / "b", **more)
    assert not (tmp_path / "b").exists()


def test_one_half_is_not_cast_to_the_other(blocks_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(blocks_bundle, tmp_path / "copy"))
    manifest = Bundle.open(copy).manifest
    graphs = {name: replace(graph, precision="bfloat16") for name, graph in manifest.graphs.items()}
    write_manifest(copy, replace(manifest, graphs=graphs))
    with pytest.raises(ConfigError, match=r"text_encoder is in bf16 already, not in fp32; leave --precision out, or"):
        rtx_build(copy, tmp_path / "b", precision="fp16")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"targets": ["sm_87"]}, "does not build for sm_87; it has sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"),
        ({"targets": ["sm_75"], "precision": "bf16"}, "is in bf16, which sm_75 does not have; it has fp32, fp16, int8"),
        ({"targets": []}, "no target; give one or more of sm_75"),
        ({"capacity": Capacity(side=4096)}, "side is 4096 pixels; this bundle's model ends at 1024"),
        ({"capacity": Capacity(tokens=(65536,))}, "65536 tokens do not fit without a plugin"),
        ({"options": Options(compatible="version")}, "name several --target instead"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("rtx")
def test_what_cannot_be_built_is_told_and_leaves_nothing(
    blocks_bundle: Path, tmp_path: Path, more: Any, message: str
) -> None:
    with pytest.raises((BackendError, ConfigError), match=re.escape(message)):
        rtx_build(blocks_bundle, tmp_path / "b", **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_too_little_memory_is_told_before_anything_is_built(
    blocks_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: GIB // 2)
    with pytest.raises(BackendError, match=r"text_encoder .* takes about .* GiB of memory and 0.5 GiB are free"):
        rtx_build(blocks_bundle, tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_a_failed_build_leaves_nothing_and_says_why(blocks_bundle: Path, tmp_path: Path, only: Any) -> None:
    only("conditioner", {"length": (5, 2, 9), "rows": (1, 1, 1)})
    with pytest.raises(BackendError, match=r"refuses a profile of conditioner: .*tensors hidden_states.*MIN<=OPT<=MAX"):
        rtx_build(blocks_bundle, tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_a_graph_without_the_swap_names_what_the_parser_refuses(blocks_bundle: Path) -> None:
    api = builder_module.load("tensorrt-rtx")
    builder = api.builder()
    with pytest.raises(BackendError, match=r"cannot parse denoiser.onnx: node \S+ \(SequenceEmpty\): not supported"):
        api.parse(api.network(builder), Bundle.open(blocks_bundle).graph_path("denoiser"))
