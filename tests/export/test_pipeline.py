"""export(): every storage format, what the manifest says, and nothing half written."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from framert.export import pipeline
from framert.export.checkpoint import open_checkpoint
from framert.export.pipeline import export
from framert.export.verify import table, verify
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BundleError, CheckpointError, ConfigError
from framert.runtime.manifest import Graph

Fake = Callable[..., Graph]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the tracing of graphs: for tests of everything around it."""

    def stub(plan: Any, recipe: Any, word: str, softcap: float, folder: Path, target: str) -> Graph:
        (folder / f"{plan.name}.onnx").write_bytes(b"graph")
        return Graph(
            files=(f"{plan.name}.onnx",), precision="float32", inputs=dict(plan.inputs), outputs=dict(plan.outputs)
        )

    monkeypatch.setattr(pipeline, "_export_graph", stub)


def cast(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) for name, tensor in load_file(file).items()}


@pytest.mark.slow
def test_a_checkpoint_of_mixed_formats_becomes_a_bundle_that_verifies(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "transformer/diffusion_pytorch_model.safetensors"
    tensors = list(cast(file, torch.bfloat16).items())
    file.unlink()
    names = [f"diffusion_pytorch_model-0000{index}-of-00002.safetensors" for index in (1, 2)]
    for name, part in zip(names, (tensors[::2], tensors[1::2]), strict=True):
        save_file(dict(part), file.with_name(name))
    weight_map = {key: name for name, part in zip(names, (tensors[::2], tensors[1::2]), strict=True) for key, _ in part}
    file.with_name(file.name + ".index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    vae = checkpoint / "vae/diffusion_pytorch_model.safetensors"
    save_file(cast(vae, torch.float16), vae)
    text = checkpoint / "text_encoder/model.safetensors"
    save_file({**load_file(text), "decoder.final_layer_norm.weight": torch.ones(4)}, text)
    bundle = export(checkpoint, tmp_path / "mixed.bundle", native_side=256, progress=False)
    opened = Bundle.open(bundle)
    assert opened.manifest.native_side == 256
    report = verify(bundle, checkpoint, progress=False)
    print(table(report))
    assert report["passed"]
    assert Bundle.open(bundle).manifest.verified == report


@pytest.mark.usefixtures("fast")
def test_manifest_holds_what_the_configurations_say(checkpoint: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(export(checkpoint, tmp_path / "b", progress=False)).manifest
    model = manifest.model
    assert (manifest.family, manifest.target) == ("onediffusion", {"kind": "onnx"})
    assert (manifest.native_side, manifest.prompt_tokens, manifest.guidance_branches) == (512, 300, 4)
    assert (model.hidden_size, model.depth, model.heads, model.kv_heads, model.head_dim) == (144, 3, 8, 2, 18)
    assert (model.softcap, model.patch, model.latent_channels, model.vae_factor) == (30.0, 2, 16, 8)
    assert (model.scaling_factor, model.text_width, model.max_positions, model.max_frames) == (1.5305, 64, 32, 32)
    assert (manifest.schedule.base_shift, manifest.schedule.max_image_seq_len) == (0.5, 4096)
    assert manifest.verified == {}
    origin = manifest.provenance
    assert origin["checkpoint"] == "checkpoint"
    assert set(origin) == {"checkpoint", "files", "framert", "torch", "threads", "onnx", "date", "precision"}
    assert "transformer/diffusion_pytorch_model.safetensors" in origin["files"]
    assert "tokenizer/spiece.model" in origin["files"]


@pytest.mark.usefixtures("fast")
def test_native_side_of_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "transformer/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "native_side": 64}))
    assert Bundle.open(export(checkpoint, tmp_path / "a", progress=False)).manifest.native_side == 64
    given = export(checkpoint, tmp_path / "b", native_side=128, progress=False)
    assert Bundle.open(given).manifest.native_side == 128


@pytest.mark.parametrize("side", [0, -64, 100, 100_000, 64.5, True])
@pytest.mark.usefixtures("fast")
def test_impossible_native_sides(checkpoint: Path, tmp_path: Path, side: Any) -> None:
    with pytest.raises(ConfigError, match=r"native_side is .* multiple of 16 up to 512"):
        export(checkpoint, tmp_path / "b", native_side=side, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("failure", "caught"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), BundleError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=["disk full", "interrupted", "bug"],
)
@pytest.mark.usefixtures("fast")
def test_nothing_is_half_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any, caught: type[BaseException]
) -> None:
    before = export(checkpoint, tmp_path / "b", progress=False)
    manifest = (before / "manifest.json").read_bytes()
    stub: Fake = pipeline._export_graph

    def fail(plan: Any, *rest: Any) -> Graph:
        if plan.name == "denoiser":
            raise failure
        return stub(plan, *rest)

    monkeypatch.setattr(pipeline, "_export_graph", fail)
    with pytest.raises(caught):
        export(checkpoint, tmp_path / "b", force=True, progress=False)
    with pytest.raises(caught):
        export(checkpoint, tmp_path / "new", progress=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b", "checkpoint"]
    assert (before / "manifest.json").read_bytes() == manifest
    Bundle.open(before)


@pytest.mark.parametrize("what", ["no checkpoint", "a tensor", "the tokenizer", "interrupted"])
@pytest.mark.usefixtures("fast")
def test_folders_made_for_the_output_go_with_a_failure(
    what: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Graph:
        raise KeyboardInterrupt

    if what == "a tensor":
        (checkpoint / "vae/diffusion_pytorch_model.safetensors").unlink()
    elif what == "the tokenizer":
        (checkpoint / "tokenizer/spiece.model").unlink()
    elif what == "interrupted":
        monkeypatch.setattr(pipeline, "_export_graph", interrupt)
    source = "nope/none/x" if what == "no checkpoint" else checkpoint
    (tmp_path / "mine").mkdir()
    for output in ("aa/bb/cc", "mine/aa/cc"):
        with pytest.raises(KeyboardInterrupt if what == "interrupted" else CheckpointError):
            export(source, tmp_path / output, progress=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint", "mine"]
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.usefixtures("fast")
def test_folders_above_the_output_are_made(checkpoint: Path, tmp_path: Path) -> None:
    Bundle.open(export(checkpoint, tmp_path / "aa/bb/cc", progress=False))


@pytest.mark.usefixtures("fast")
def test_a_full_disk_is_one_sentence(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Graph:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "_export_graph", full)
    with pytest.raises(BundleError, match=r"cannot write .*: No space left on device; nothing was changed there"):
        export(checkpoint, tmp_path / "b", progress=False)


@pytest.mark.usefixtures("fast")
def test_an_existing_output_is_kept_without_force(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "b", progress=False)
    with pytest.raises(BundleError, match="exists; give another -o, or --force"):
        export(checkpoint, bundle, progress=False)
    export(checkpoint, bundle, force=True, progress=False)
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        export(checkpoint, checkpoint, force=True, progress=False)


@pytest.mark.usefixtures("fast")
def test_a_missing_schedule_constant_is_named(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    del config["max_shift"]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="scheduler/ lacks max_shift"):
        export(checkpoint, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("fast")
def test_progress_goes_to_stderr(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(checkpoint, tmp_path / "b")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "vae_decoder" in captured.err


def test_digests_are_of_the_files(checkpoint: Path) -> None:
    first = open_checkpoint(checkpoint).digests()
    (checkpoint / "tokenizer/added_tokens.json").write_text("{}")
    second = open_checkpoint(checkpoint).digests()
    assert {name for name in first if first[name] != second[name]} == {"tokenizer/added_tokens.json"}
