"""verify finds a bundle that does not compute what its checkpoint does; inspect says what was found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from framert.export import pipeline, written
from framert.export.checkpoint import open_checkpoint
from framert.export.inspect import describe, render
from framert.export.oracle import Oracle
from framert.export.precision import NOTES
from framert.export.verify import _matching_plans, relative_error, table, verify
from framert.runtime.bundle import GRAPHS, Bundle, file_specs, write_manifest
from framert.runtime.errors import BackendError, BundleError, CheckpointError, ConfigError

CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoint"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the golden bundle that a test may write to."""
    return Path(shutil.copytree(golden_bundle, tmp_path / "golden.bundle"))


def test_the_golden_bundle_is_within_budget_and_says_so(bundle: Path) -> None:
    assert "not verified" in render(describe(bundle))
    before = Bundle.open(bundle).manifest
    evaluation = {"openvino-bf16": {"run": {"scenes": 4}, "tasks": {}}}  # as evaluate.py --record writes
    recorded = {"backends": {"openvino:bf16": {"velocity_error": 0.01}}, "evaluation": evaluation}
    write_manifest(bundle, replace(before, verified={**recorded, "tasks_not_run": "an older record"}))
    report = verify(bundle, CHECKPOINT, progress=False)
    print(table(report))
    assert report["passed"]
    assert set(report["graphs"]) == set(GRAPHS)
    assert all(0 < error < 1e-5 for graph in report["graphs"].values() for error in graph["errors"].values())
    assert table(report).endswith("passed")
    assert Bundle.open(bundle).manifest.verified == recorded | report
    assert "not verified" not in render(describe(bundle))


def test_a_changed_weight_is_found(bundle: Path, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["layers.1.attention.wk.weight"][0, 0] += 0.5
    save_file(tensors, checkpoint / WEIGHTS)
    report = verify(bundle, checkpoint, progress=False)
    assert not report["passed"]
    assert [name for name, graph in report["graphs"].items() if not graph["passed"]] == ["denoiser"]
    assert "BEYOND" in table(report)


def test_another_models_checkpoint_is_refused(bundle: Path, checkpoint: Path) -> None:
    file = checkpoint / "transformer/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "depth": 2}))
    tensors = load_file(checkpoint / WEIGHTS)
    save_file({name: x for name, x in tensors.items() if not name.startswith("layers.2.")}, checkpoint / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"is not what .* was made of"):
        verify(bundle, checkpoint, progress=False)


def test_a_damaged_bundle_is_refused(bundle: Path) -> None:
    with (bundle / "denoiser.onnx").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(BundleError, match="truncated"):
        verify(bundle, CHECKPOINT, progress=False)
    with pytest.raises(BundleError, match="truncated"):
        describe(bundle)


def test_graphs_run_in_torch_as_they_are_written(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs bfloat16 is right in fp32, where it can be compared."""
    monkeypatch.setattr(written, "BFLOAT16", "float32")
    assert isinstance(written.runner(Bundle.open(bundle)), written.Written)
    report = verify(bundle, CHECKPOINT, progress=False)
    assert report["passed"], table(report)


def test_an_operator_that_is_not_known_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.open(bundle).manifest
    graphs = {**manifest.graphs, "denoiser": replace(manifest.graphs["denoiser"], precision="bfloat16")}
    write_manifest(bundle, replace(manifest, graphs=graphs))
    monkeypatch.delitem(written.KNOWN, "RotaryEmbedding")
    with pytest.raises(BackendError, match=r"denoiser\.onnx uses RotaryEmbedding, which is not computed in bfloat16"):
        verify(bundle, CHECKPOINT, progress=False)
    opened, checkpoint = Bundle.open(bundle), open_checkpoint(CHECKPOINT)
    with pytest.raises(ConfigError, match=r"cannot be measured here: .* RotaryEmbedding.*; --unchecked makes it"):
        pipeline._tasks(opened, Oracle(_matching_plans(opened, checkpoint), checkpoint, manifest.model))


def test_what_onnxruntime_cannot_load_is_one_sentence(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    (bundle / "text_encoder.onnx").write_bytes(b"no graph")
    write_manifest(bundle, replace(manifest, files=file_specs(bundle)))
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*text_encoder\.onnx: [^\n]*$"):
        verify(bundle, CHECKPOINT, progress=False)


def test_inspect_says_what_an_error_in_fp16_is_of(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    entry = {"errors": {"velocity": 0.001}, "note": NOTES["float16"]}
    write_manifest(bundle, replace(manifest, verified={"graphs": {"denoiser": entry}}))
    assert "error 1.0e-03, of float16 weights in float32 arithmetic" in render(describe(bundle))


def test_a_value_that_is_not_finite_is_an_infinite_error() -> None:
    assert relative_error(np.ones(2), np.array([1.0, np.nan])) == float("inf")
    assert relative_error(np.array([1.0, np.nan]), np.ones(2)) == float("inf")
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)


def test_description_is_json_and_complete(golden_bundle: Path) -> None:
    description = json.loads(json.dumps(describe(golden_bundle)))
    assert set(description["graphs"]) == set(GRAPHS)
    assert description["graphs"]["vae_decoder"]["inputs"] == {"latents": "float32[1, 16, latent_height, latent_width]"}
    assert description["limits"]["max_side"] == 512
    assert description["bytes"] == sum(
        file.stat().st_size for file in golden_bundle.iterdir() if file.name != "manifest.json"
    )
    text = render(description)
    for name in GRAPHS:
        assert name in text
