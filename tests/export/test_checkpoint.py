"""Reading checkpoints: every format that is allowed, and one sentence for everything that is not."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from framert.export.checkpoint import check_tensors, open_checkpoint
from framert.export.families.onediffusion_plan import plan_graphs
from framert.export.models.nextdit import NextDiTConfig
from framert.export.safetensors_file import read_header
from framert.export.trace import stored_shapes
from framert.runtime.errors import CheckpointError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"


def shard(folder: Path, name: str, count: int) -> None:
    """Split a part's weight file into shards with an index."""
    file = folder / name
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for index in range(count):
        shard_name = f"{file.stem}-{index + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(tensors.items())[index::count])
        save_file(part, file.with_name(shard_name))
        weight_map |= dict.fromkeys(part, shard_name)
    file.with_name(file.name + ".index.json").write_text(json.dumps({"weight_map": weight_map}))


def check(folder: Path) -> None:
    opened = open_checkpoint(folder)
    transformer = NextDiTConfig.from_checkpoint(opened.configs["transformer"])
    plans = plan_graphs(transformer, opened.configs["vae"], opened.configs["text_encoder"])
    check_tensors(opened, {plan.part: stored_shapes(plan) for plan in plans})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_values_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {
        "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype),
        "b": torch.tensor(-0.0, dtype=dtype),
        "c": torch.tensor([float("inf"), 1e-5], dtype=dtype),
        "d": torch.zeros(0, 4, dtype=dtype),
    }
    save_file(stored, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert set(found) == set(stored)
    for name, tensor in stored.items():
        values = found[name].read()
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, tensor.float().numpy())


def test_shards_hold_the_same_tensors(checkpoint: Path) -> None:
    whole = open_checkpoint(checkpoint)
    before = {name: tensor.read() for name, tensor in whole.tensors["transformer"].items()}
    shard(checkpoint, WEIGHTS, 3)
    opened = open_checkpoint(checkpoint)
    check(checkpoint)
    assert set(opened.tensors["transformer"]) == set(before)
    for name, values in before.items():
        np.testing.assert_array_equal(opened.tensor("transformer", name).read(), values)


def test_golden_checkpoint_fits_and_needs_no_transformer_entry(checkpoint: Path) -> None:
    assert "transformer" not in json.loads((checkpoint / "model_index.json").read_text())
    check(checkpoint)


def test_decoder_of_a_t5_file_is_ignored(checkpoint: Path) -> None:
    file = checkpoint / "text_encoder/model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "decoder.block.0.weight": torch.zeros(2), "lm_head.weight": torch.zeros(3)}, file)
    check(checkpoint)


def test_shared_embedding_has_two_names(checkpoint: Path) -> None:
    file = checkpoint / "text_encoder/model.safetensors"
    tensors = load_file(file)
    old = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
    new = "encoder.embed_tokens.weight" if old == "shared.weight" else "shared.weight"
    tensors[new] = tensors.pop(old)
    save_file(tensors, file)
    check(checkpoint)


def test_every_wrong_tensor_is_named_in_one_error(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["layers.0.attention.wq.weight"] = torch.zeros(3, 3)
    del tensors["layers.1.feed_forward.w2.weight"], tensors["x_embedder.bias"]
    tensors["surprise"] = torch.zeros(1)
    save_file(tensors, checkpoint / WEIGHTS)
    vae = checkpoint / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(vae).items() if name != "encoder.conv_in.bias"}, vae)
    with pytest.raises(CheckpointError) as caught:
        check(checkpoint)
    message = str(caught.value)
    for part in (
        "transformer/layers.0.attention.wq.weight has shape [3, 3], [144, 144] expected",
        "transformer/layers.1.feed_forward.w2.weight is missing",
        "transformer/x_embedder.bias is missing",
        "transformer/surprise is not part of this model",
        "vae/encoder.conv_in.bias is missing",
    ):
        assert part in message


def damage_missing_folder(folder: Path) -> None:
    (folder / "vae").rename(folder / "elsewhere")


def damage_pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "transformer/diffusion_pytorch_model.bin")


def damage_truncated(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate(3_000_000)


def damage_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 20) + b"{" * 40)


def damage_not_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"PK\x03\x04 a zip file, perhaps")


def damage_offsets(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def damage_missing_shard(folder: Path) -> None:
    shard(folder, WEIGHTS, 2)
    next((folder / "transformer").glob("*-00002-*")).unlink()


def damage_shard_outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}))


def damage_two_files(folder: Path) -> None:
    (folder / "transformer/other.safetensors").write_bytes((folder / WEIGHTS).read_bytes())


def damage_config_key(folder: Path) -> None:
    file = folder / "transformer/config.json"
    config = json.loads(file.read_text())
    del config["depth"], config["num_kv_heads"]
    file.write_text(json.dumps(config))


def damage_config_json(folder: Path) -> None:
    (folder / "vae/config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_missing_folder, ("vae/config.json is missing", "a checkpoint is a folder with")),
        (damage_pickle_only, ("no .safetensors file", "diffusion_pytorch_model.bin is pickled")),
        (damage_truncated, ("is truncated: 3000000 bytes", "download it again")),
        (damage_header, ("damaged safetensors header",)),
        (damage_not_safetensors, ("not a safetensors file",)),
        (damage_offsets, ("damaged safetensors header",)),
        (damage_missing_shard, ("-00002-of-00002.safetensors", "is missing", "all shards")),
        (damage_shard_outside, ("is missing", "all shards")),
        (damage_two_files, ("no index.json to join them",)),
        (damage_config_key, ("lacks depth, num_kv_heads",)),
        (damage_config_json, ("vae/config.json cannot be read",)),
    ],
)
def test_damage_is_one_sentence(checkpoint: Path, damage: object, words: tuple[str, ...]) -> None:
    assert callable(damage)
    damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        check(checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("source", ["nowhere", "./a/b/c", "/nowhere/at/all"])
def test_no_such_checkpoint(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*OWNER/NAME"):
        open_checkpoint(source)


def test_a_hub_name_is_downloaded_without_code_or_pickles(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    opened = open_checkpoint("someone/something")
    assert (opened.name, opened.folder) == ("someone/something", checkpoint)
    ((name, patterns),) = asked
    assert name == "someone/something"
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in patterns)


def test_a_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, *, allow_patterns: list[str]) -> str:
        raise OSError("offline\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"someone/something.* cannot be downloaded \(offline\)") as caught:
        open_checkpoint("someone/something")
    assert "\n" not in str(caught.value)
