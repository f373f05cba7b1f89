"""The contract between export and runtime: a folder with manifest.json, tokenizer.json and one file per graph.

Opening a bundle checks everything the runtime will rely on, and refuses what does not match with the reason. Writing
one is atomic: the folder appears whole, under its final name, or not at all.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_origin

from framert.runtime.errors import BundleError

FORMAT = 1
MANIFEST = "manifest.json"
Spec = TypeVar("Spec", bound="ModelSpec | ScheduleSpec | FileSpec | Graph | Manifest")
GRAPHS = ("text_encoder", "vae_encoder", "conditioner", "denoiser", "vae_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One graph input or output. shape holds sizes, and names where the size is free."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One graph of a bundle. files: the graph first, then the external data it reads."""

    files: tuple[str, ...]
    precision: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the runtime must know of the transformer and the autoencoder to fill the tables."""

    hidden_size: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float
    patch: int  # side of a token in latent pixels
    latent_channels: int
    vae_factor: int  # picture pixels per latent pixel
    scaling_factor: float  # transformer's latent = encoder's latent * scaling_factor; shift_factor is never used
    text_width: int
    max_positions: int  # largest latent row or column, in tokens
    max_frames: int

    @property
    def multiple(self) -> int:
        """Picture sides must be multiples of this."""
        return self.patch * self.vae_factor

    @property
    def max_side(self) -> int:
        """Largest side of a picture, in pixels."""
        return self.max_positions * self.multiple

    @property
    def token_width(self) -> int:
        return self.patch * self.patch * self.latent_channels


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """Constants of the flow-matching schedule; sequence lengths are in tokens."""

    num_train_timesteps: int
    base_shift: float
    max_shift: float
    base_image_seq_len: int
    max_image_seq_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything manifest.json says. verified and provenance are records for people, the rest is relied on."""

    family: str
    native_side: int
    model: ModelSpec
    schedule: ScheduleSpec
    prompt_tokens: int  # a prompt is truncated to this many tokens, end token included
    guidance_branches: int  # width of guidance_index
    target: Mapping[str, str]
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileSpec]
    verified: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Raises: KeyError, TypeError or ValueError if a field is missing, unknown or of another type."""
        graphs = {
            name: Graph(
                files=tuple(graph["files"]),
                precision=graph["precision"],
                inputs=_tensors(graph["inputs"]),
                outputs=_tensors(graph["outputs"]),
            )
            for name, graph in data["graphs"].items()
        }
        rest = {key: value for key, value in data.items() if key not in {"model", "schedule", "graphs", "files"}}
        return _checked(
            cls(
                model=_checked(ModelSpec(**data["model"])),
                schedule=_checked(ScheduleSpec(**data["schedule"])),
                graphs={name: _checked(graph) for name, graph in graphs.items()},
                files={name: _checked(FileSpec(**spec)) for name, spec in data["files"].items()},
                **rest,
            )
        )


def _checked(spec: Spec) -> Spec:
    """Return ``spec`` if its numbers and texts are what their fields say. Raises: TypeError that names the field."""
    for item in fields(spec):
        value = getattr(spec, item.name)
        if item.type in (int, float):
            kinds = (int,) if item.type is int else (int, float)
            least = 1 if item.type is int and item.name != "size" else 0  # only a file may be empty
            good = isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf")
        elif item.type is str:
            good = isinstance(value, str)
        elif get_origin(item.type) is Mapping:
            texts = value.values() if item.type == Mapping[str, str] and isinstance(value, Mapping) else ()
            good = isinstance(value, Mapping) and all(isinstance(text, str) for text in texts)
        else:
            good = True
        if not good:
            raise TypeError(f"{item.name} is {value!r}")
    return spec


def _tensors(data: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(dtype=spec["dtype"], shape=tuple(spec["shape"])) for name, spec in data.items()}


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder and its checked manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_files: bool = True) -> "Bundle":
        """Read and check a bundle.

        Args:
            path: the bundle's folder.
            check_files: compare size and sha256 of every file with the manifest.
        Raises: BundleError that says what is wrong and what would mend it.
        """
        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"the bundle is given as a {type(path).__name__}; give the path of its folder")
        folder = Path(path)
        manifest = _read_manifest(folder)
        if missing := [name for name in GRAPHS if name not in manifest.graphs]:
            raise BundleError(f"{folder} lacks the graphs {', '.join(missing)}; export the checkpoint again")
        needed = {file for graph in manifest.graphs.values() for file in graph.files} | {"tokenizer.json"}
        if unlisted := sorted(needed - set(manifest.files)):
            raise BundleError(f"{folder}/{MANIFEST} uses {', '.join(unlisted)} without listing it; export again")
        if check_files:
            for name, spec in manifest.files.items():
                _check_file(folder, name, spec)
        return cls(folder, manifest)

    def graph_path(self, name: str) -> Path:
        return self.path / self.manifest.graphs[name].files[0]


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not os.path.lexists(folder):  # unlike Path.exists, says False for a name that no file can have
        raise BundleError(f"no bundle at {folder}; `framert export CHECKPOINT -o {folder}` makes one")
    if not os.path.isfile(file):
        hint = " (a checkpoint? export it first)" if (folder / "model_index.json").exists() else ""
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}{hint}; give a folder made by framert export")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        version = data["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read ({error}); export the checkpoint again") from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        remedy = "update framert" if newer else "export the checkpoint again"
        raise BundleError(f"{folder} has bundle format {version!r}, this framert reads {FORMAT}; {remedy}")
    try:
        return Manifest.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{file} is damaged or edited ({error}); export the checkpoint again") from error


def _check_file(folder: Path, name: str, spec: FileSpec) -> None:
    file = folder / name
    if Path(name).name != name:
        raise BundleError(f"{folder}/{MANIFEST} names the file {name!r} outside the bundle; export again")
    if not file.is_file():
        raise BundleError(f"{folder} lacks {name}; copy the whole folder, or export the checkpoint again")
    size = file.stat().st_size
    if size != spec.size:
        state = "truncated" if size < spec.size else "not the file that was exported"
        raise BundleError(f"{file} is {state}: {size} bytes, {spec.size} expected; copy it again, or export again")
    if (actual := sha256(file)) != spec.sha256:
        raise BundleError(
            f"{file} was changed after export (sha256 {actual[:12]}, {spec.sha256[:12]} expected); "
            "copy it again, or export the checkpoint again"
        )


def sha256(file: Path) -> str:
    """Return the hexadecimal digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_specs(folder: Path) -> dict[str, FileSpec]:
    """Return size and digest of every file of a folder but the manifest."""
    return {
        file.name: FileSpec(size=file.stat().st_size, sha256=sha256(file))
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json beside its final place, then rename it there."""
    temporary = folder / (MANIFEST + ".part")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(manifest.to_json(), stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)


@contextlib.contextmanager
def new_bundle(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` when the block ends without an error.

    Folders above ``path`` are made where they are missing, and are gone again after an error.

    Raises: BundleError if something stands at ``path`` and ``force`` is false, or is not a bundle; or the disk is full.
    """
    final = Path(path)
    if final.exists():
        if not force:
            raise BundleError(f"{final} exists; give another -o, or --force to replace it")
        if not (final / MANIFEST).is_file():
            raise BundleError(f"{final} exists and is not a bundle, so it is not replaced; give another -o")
    missing: list[Path] = []
    try:
        missing += [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]  # deepest first
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        _remove_empty(missing)
        raise BundleError(f"cannot write {final}: {error.strerror}; give an -o in a folder you can write") from error
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.chmod(0o755)
        _replace_folder(temporary, final)
    except OSError as error:
        raise BundleError(f"cannot write {final}: {error.strerror or error}; nothing was changed there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _replace_folder(new: Path, final: Path) -> None:
    if not final.exists():
        new.rename(final)
        return
    old = new.with_name(new.name + ".old")
    final.rename(old)
    try:
        new.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
