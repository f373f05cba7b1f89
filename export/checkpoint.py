"""A checkpoint in the published folder layout: configurations and safetensors, read lazily. Nothing in it is run."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framert.export.safetensors_file import StoredTensor, read_header
from framert.runtime.bundle import sha256
from framert.runtime.errors import CheckpointError

# Folders that make up the part text_encoder; where there are others than the first, its tensors' names begin with them.
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
IMAGE_ENCODER, IMAGE_PROCESSOR = "image_encoder", "feature_extractor"  # optional
CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
# What a hub download needs; code and pickled weights stay where they are.
HUB_PATTERNS = ("model_index.json", "*/*.json", "*/*.safetensors", "tokenizer*/spiece.model", "tokenizer*/merges.txt")
# Tensors that a part's files may hold beyond its own: a T5 file may hold the decoder too, a CLIP file its places.
IGNORED = {"text_encoder": ("decoder.", "lm_head.", "text_model.embeddings.position_ids")}
# Names under which one and the same tensor may be stored.
ALIASES = {"encoder.embed_tokens.weight": "shared.weight", "shared.weight": "encoder.embed_tokens.weight"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint. name: its folder's name or its hub name; tensors: by part, then by name.

    configs: by folder. The part text_encoder may be several of them, see ``text_encoders``.
    """

    folder: Path
    name: str
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, StoredTensor]]

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Folders of the text encoders there are."""
        return tuple(name for name in TEXT_ENCODERS if name in self.configs)

    def tokenizer_of(self, text_encoder: str) -> Path:
        return self.folder / text_encoder.replace("text_encoder", "tokenizer")

    def tensor(self, part: str, name: str) -> StoredTensor:
        tensors = self.tensors[part]
        return tensors[name] if name in tensors else tensors[alias(name) or name]

    def digests(self) -> dict[str, str]:
        """Return sha256 of every file that is read, by path within the checkpoint."""
        files = {tensor.file for part in self.tensors.values() for tensor in part.values()}
        files |= {self.folder / part / _config_name(part) for part in self.configs}
        tokenizers = [self.tokenizer_of(name) for name in self.text_encoders]
        files |= {file for folder in tokenizers for file in folder.iterdir() if file.is_file()}
        return {file.relative_to(self.folder).as_posix(): sha256(file) for file in sorted(files)}


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder, or download a hub repository ("owner/name") and open that.

    Raises: CheckpointError if a folder, configuration or weight file is missing or cannot be read.
    """
    folder, name = Path(source), Path(source).resolve().name
    if not folder.is_dir():
        folder, name = _download(str(source)), str(source)
    encoders = [one for one in TEXT_ENCODERS if (folder / one).is_dir()] or ["text_encoder"]
    images = [one for one in (IMAGE_ENCODER, IMAGE_PROCESSOR) if (folder / one).is_dir()]
    parts = ["transformer", "vae", "scheduler", *encoders, *images]
    configs = {part: _read_json(folder / part / _config_name(part)) for part in parts}
    tensors = {part: _read_part(folder / part) for part in ("transformer", "vae")}
    tensors["text_encoder"] = _read_text_encoders(folder, encoders)
    if IMAGE_ENCODER in images:
        tensors[IMAGE_ENCODER] = _read_part(folder / IMAGE_ENCODER)
    return Checkpoint(folder, name, configs, tensors)


def alias(name: str) -> str | None:
    """Return the other name under which a tensor may be stored, if there is one."""
    match = re.fullmatch(r"(text_encoder(?:_\d)?\.)?(.*)", name)
    assert match is not None
    other = ALIASES.get(match[2])
    return None if other is None else (match[1] or "") + other


def check_tensors(checkpoint: Checkpoint, expected: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    """Compare the stored tensors with the shapes that the configurations call for.

    Args:
        expected: shapes by part and name.
    Raises: CheckpointError that names every missing, extra and misshapen tensor.
    """
    problems: list[str] = []
    for part, shapes in expected.items():
        stored = checkpoint.tensors[part]
        for name, shape in shapes.items():
            found = stored.get(name) or stored.get(alias(name) or "")
            if found is None:
                problems.append(f"{part}/{name} is missing")
            elif found.shape != shape:
                problems.append(f"{part}/{name} has shape {list(found.shape)}, {list(shape)} expected")
        allowed = set(shapes) | {other for name in shapes if (other := alias(name)) is not None}
        extra = (name for name in stored if name not in allowed and not _is_ignored(part, name))
        problems += [f"{part}/{name} is not part of this model" for name in extra]
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder} does not fit its configuration: {'; '.join(problems)}; "
            "give the checkpoint's own config.json files and all its weight files"
        )


def _is_ignored(part: str, name: str) -> bool:
    return re.sub(r"^text_encoder(_\d)?\.", "", name).startswith(IGNORED.get(part, ("\0",)))


def config_values(config: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return the named values. Raises: CheckpointError naming those that are missing."""
    if missing := [name for name in names if config.get(name) is None]:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; copy the file from the published checkpoint")
    return {name: config[name] for name in names}


def _download(source: str) -> Path:
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"no checkpoint at {source}; give a folder, or the OWNER/NAME of a hub repository")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"no folder {source}, and huggingface_hub is not installed to download it; pip install 'framert[export]'"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_PATTERNS)))
    except Exception as error:  # its errors share no base: HTTP, validation, offline, disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"no folder {source}, and the hub repository of that name cannot be downloaded ({reason}); "
            "give a folder, or the OWNER/NAME of a repository that you can read"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is missing; a checkpoint is a folder with {', '.join(CONFIGS)} and tokenizer"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not a JSON object; download it again")
    return data


def _config_name(part: str) -> str:
    return CONFIGS.get(part, "preprocessor_config.json" if part == IMAGE_PROCESSOR else "config.json")


def _read_text_encoders(folder: Path, names: Sequence[str]) -> dict[str, StoredTensor]:
    if list(names) == ["text_encoder"]:
        return _read_part(folder / "text_encoder")
    return {f"{one}.{name}": tensor for one in names for name, tensor in _read_part(folder / one).items()}


def _read_part(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one part: of the only weight file, or of the shards that an index lists."""
    if indexes := sorted(folder.glob("*.safetensors.index.json")):
        return _read_shards(indexes)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
        found = f" ({', '.join(others)} is pickled and is not read)" if others else ""
        raise CheckpointError(f"{folder} has no .safetensors file{found}; download the safetensors weights")
    plain = [file for file in files if "." not in file.stem]  # model.fp16.safetensors is the same in another precision
    files = plain or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder} has {names} and no index.json to join them; keep one, or add the index")
    return read_header(files[0])


def _read_shards(indexes: list[Path]) -> dict[str, StoredTensor]:
    if len(indexes) > 1:
        names = ", ".join(file.name for file in indexes)
        raise CheckpointError(f"{indexes[0].parent} has several indexes ({names}); keep the one to export")
    index = indexes[0]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map; download it again")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{file}, listed by {index.name}, is missing; download all shards")
        tensors |= {key: tensor for key, tensor in read_header(file).items() if weight_map.get(key) == name}
    if absent := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(f"{index} lists {', '.join(absent)}, which no shard holds; download the shards again")
    return tensors
