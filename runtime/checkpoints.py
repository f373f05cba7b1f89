"""A checkpoint given where a bundle is taken: exported once into a cache folder, and found there the next time.

The one module besides the command line that may import framert.export, and only when a checkpoint was given.
"""

import hashlib
import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import framert
from framert.runtime.bundle import MANIFEST, Bundle
from framert.runtime.errors import BackendError, BundleError
from framert.runtime.manifest import FORMAT

CACHE_VARIABLE = "FRAMERT_CACHE"


def is_checkpoint(path: object) -> bool:
    """Return whether ``path`` is a folder in the published checkpoint layout and no bundle."""
    if not isinstance(path, str | os.PathLike):
        return False
    try:
        return (Path(path) / "model_index.json").is_file() and not (Path(path) / MANIFEST).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def bundle_of(checkpoint: str | os.PathLike[str]) -> Path:
    """Return a bundle of a checkpoint's folder, exported first unless that was done before.

    It lies in ``$FRAMERT_CACHE``, or framert's folder in the user's cache, under a name made from the checkpoint's
    files (their names, sizes and times) and from framert's exporter: what changes either makes a new one.

    Raises: BackendError if the extra "export" is not installed; CheckpointError, BundleError as ``framert export``.
    """
    folder = Path(checkpoint).resolve()
    bundle = cache_folder() / f"{folder.name}-{_fingerprint(folder)}.bundle"
    if (bundle / MANIFEST).is_file():
        try:
            Bundle.open(bundle)
        except BundleError:  # damaged since; the checkpoint is at hand, so it is made again
            shutil.rmtree(bundle, ignore_errors=True)
        else:
            return bundle
    try:
        pipeline = import_module("framert.export.pipeline")
    except ModuleNotFoundError as error:
        package = (error.name or "a package").split(".")[0]
        if package == "framert":
            raise
        raise BackendError(
            f"{checkpoint} is a checkpoint, and exporting it needs {package}; pip install 'framert[export]', "
            "or export it elsewhere and load the bundle"
        ) from error
    made: Path = pipeline.export(folder, bundle)
    return made


def cache_folder() -> Path:
    """Return the folder of what framert makes once and finds again; it need not exist."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "framert"


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256(f"{framert.__version__} {FORMAT} {folder}".encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = file.stat()
        digest.update(f"{file.relative_to(folder)} {found.st_size} {found.st_mtime_ns}\n".encode())
    exporter = find_spec("framert.export")
    for root in (exporter.submodule_search_locations or []) if exporter is not None else []:
        for source in sorted(Path(root).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
