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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from framert.runtime.errors import BundleError
from framert.runtime.manifest import FORMAT, FileSpec, Manifest

MANIFEST = "manifest.json"
GRAPHS = ("text_encoder", "vae_encoder", "conditioner", "denoiser", "vae_decoder")  # a family may have more


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
        needed = {file for graph in manifest.graphs.values() for file in graph.files}
        needed |= {spec.file for spec in manifest.tokenizer_specs().values()}
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
