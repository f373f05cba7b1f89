"""Results as files: pictures that say how to repeat them, arrays and JSON beside them, all of them or none.

What a result holds decides the files, all named after one path such as ``out.png``:

- pictures: ``out.png``, or ``out-0.png``, ``out-1.png`` when there are several, counted over all results;
- depth: ``out.npy``, (h, w) float32 in 0..1, near is 1;
- masks: ``out-red-cube.png`` for the thing "red cube", 8-bit grey, 255 inside;
- boxes and cameras: ``out.json``, with the settings and the names of the pictures (``Cameras.from_json`` reads it).

Of several results, depth, masks and JSON carry the number of the result: ``out-0.npy``, ``out-0-red-cube.png``.
Settings, seed included, are JSON in the text chunk "framert" of a PNG, and in the EXIF ImageDescription of JPEG and
WebP where they fit into its 64 kB.
"""

import contextlib
import errno
import io
import json
import os
import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import framert
from framert.runtime.errors import OutputError

if TYPE_CHECKING:
    from framert.runtime.composition import Composition
    from framert.runtime.result import Result

TEXT_KEY = "framert"
IMAGE_DESCRIPTION = 0x010E  # EXIF tag
MAX_EXIF = 60_000  # bytes; a JPEG marker holds 64 kB
SAVE_OPTIONS: Mapping[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}
MAX_SLUG = 60  # characters of a thing's name in a file name


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What decides the files of one result. things: names of its masks. json: whether it has boxes or cameras."""

    pictures: int
    depth: bool = False
    things: tuple[str, ...] = ()
    json: bool = False

    @classmethod
    def of_composition(cls, composition: "Composition") -> "Contents":
        """What the result of a request will hold, known before it runs."""
        frames = zip(composition.kinds, composition.mask, strict=True)
        return cls(
            pictures=sum(kind == "picture" and bool(generate) for kind, generate in frames),
            depth=composition.output == "depth",
            things=tuple(composition.colors) if composition.output == "masks" else (),
            json=composition.output in ("boxes", "cameras"),
        )

    @classmethod
    def of_result(cls, result: "Result") -> "Contents":
        return cls(
            pictures=len(result.images),
            depth=result.depth is not None,
            things=tuple(result.masks or ()),
            json=result.boxes is not None or result.cameras is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The files of one result."""

    pictures: tuple[Path, ...]
    depth: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    json: Path | None = None

    @property
    def all(self) -> list[Path]:
        single = [path for path in (self.depth, self.json) if path is not None]
        return [*self.pictures, *self.masks.values(), *single]


def plan(path: str | os.PathLike[str], contents: Sequence[Contents]) -> list[Targets]:
    """Return the files of each result under ``path``.

    Raises: OutputError if the suffix of ``path`` is not one of SAVE_OPTIONS (or .json where there are no pictures).
    """
    path = Path(path)
    pictures = sum(item.pictures for item in contents)
    allowed = [*SAVE_OPTIONS] if pictures else [*SAVE_OPTIONS, ".json"]
    if path.suffix.lower() not in allowed or not path.stem:
        raise OutputError(f"{path} has the suffix {path.suffix!r}; end the name in {', '.join(allowed)}")
    targets: list[Targets] = []
    count = 0
    for index, item in enumerate(contents):
        base = path.stem if len(contents) == 1 else f"{path.stem}-{index}"
        numbers = range(count, count + item.pictures)
        count += item.pictures
        names = [path.name] if pictures == 1 else [f"{path.stem}-{number}{path.suffix}" for number in numbers]
        targets.append(
            Targets(
                pictures=tuple(path.with_name(name) for name in names[: item.pictures]),
                depth=path.with_name(f"{base}.npy") if item.depth else None,
                masks={thing: path.with_name(f"{base}-{slug}.png") for thing, slug in _slugs(item.things).items()},
                json=path.with_name(f"{base}.json") if item.json else None,
            )
        )
    return targets


def check(targets: Sequence[Targets], *, force: bool = False) -> None:
    """Find out, before anything runs, whether the files can be written. Raises: OutputError that says why not."""
    files = [file for item in targets for file in item.all]
    for folder in {file.parent for file in files}:
        if not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise OutputError(f"cannot write {files[0]}: {folder} {state}; make the folder first, or give another -o")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise _refusal(files[0], error) from error
    taken: list[Path] = []
    for file in files:
        try:
            os.lstat(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise _refusal(file, error) from error
        if file.is_dir():
            raise OutputError(f"{file} is a folder; give -o the name of a file")
        taken.append(file)
    if taken and not force:
        more = f" and {len(taken) - 1} more of its files exist" if len(taken) > 1 else " exists"
        raise OutputError(f"{taken[0]}{more}; give another -o, or --force (in Python force=True) to replace")


def write(
    results: "Sequence[Result]",
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> list[Targets]:
    """Write results: every file, or none.

    Args:
        path: decides folder, names and the format of the pictures, see the module's text.
        force: replace files that exist. extra: joins the settings that are stored.
    Returns: the files of each result.
    Raises: OutputError if a file exists, the folder cannot be written or the disk is full; nothing has changed then.
    """
    targets = plan(path, [Contents.of_result(result) for result in results])
    check(targets, force=force)
    staged: dict[Path, Path] = {}  # final name -> the finished file beside it
    try:
        for result, files in zip(results, targets, strict=True):
            for file, data in _encode(result, files, extra or {}):
                staged[file] = _stage(file, data)
        _place(staged)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    return targets


def _place(staged: Mapping[Path, Path]) -> None:
    """Rename finished files to their final names. What stood there is set aside until all are in place."""
    aside: dict[Path, Path] = {}  # final name -> the old file beside it
    try:
        for file, temporary in staged.items():
            try:
                if os.path.lexists(file):
                    aside[file] = _hidden(file)
                    file.rename(aside[file])
                temporary.replace(file)
            except OSError as error:
                raise _refusal(file, error) from error
    except BaseException:  # an interrupt too
        for file, temporary in staged.items():
            if not temporary.exists():  # it is in place
                file.unlink(missing_ok=True)
            if file in aside and os.path.lexists(aside[file]):
                aside[file].replace(file)
        raise
    for old in aside.values():
        with contextlib.suppress(OSError):
            old.unlink()


def _encode(result: "Result", files: Targets, extra: Mapping[str, Any]) -> "list[tuple[Path, bytes]]":
    settings = {**result.settings, **extra, "framert": framert.__version__}
    text = json.dumps(settings, default=_plain)
    encoded = [
        (file, _picture(image, file.suffix.lower(), text))
        for file, image in zip(files.pictures, result.images, strict=True)
    ]
    for thing, file in files.masks.items():
        assert result.masks is not None
        encoded.append((file, _picture(Image.fromarray(result.masks[thing].astype(np.uint8) * 255), ".png", text)))
    if files.depth is not None:
        assert result.depth is not None
        buffer = io.BytesIO()
        np.save(buffer, result.depth, allow_pickle=False)
        encoded.append((files.depth, buffer.getvalue()))
    if files.json is not None:
        content = {
            "pictures": [file.name for file in files.pictures],
            **describe(result),
            "settings": settings,
        }
        encoded.append((files.json, (json.dumps(content, indent=1, default=_plain) + "\n").encode()))
    return encoded


def describe(result: "Result") -> dict[str, Any]:
    """Return what a result holds besides pictures and arrays, ready for JSON."""
    content: dict[str, Any] = {}
    if result.boxes is not None:
        content["boxes"] = {thing: None if box is None else list(box) for thing, box in result.boxes.items()}
    if result.cameras is not None:
        content.update(json.loads(result.cameras.to_json()))
    return content


def _picture(image: Image.Image, suffix: str, text: str) -> bytes:
    options = dict(SAVE_OPTIONS[suffix])
    if suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(TEXT_KEY, text)
    elif len(text) < MAX_EXIF:
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = text
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _stage(file: Path, data: bytes) -> Path:
    """Write ``data`` beside ``file``, to the disk. Raises: OutputError; nothing is left then."""
    temporary = _hidden(file)
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refusal(file, error) from error
    except BaseException:  # an interrupt
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _hidden(file: Path) -> Path:
    """A new name in the folder of ``file``."""
    return file.with_name(f".{secrets.token_hex(8)}.part")


def _refusal(file: Path, error: Exception) -> OutputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    remedy = "free some space, or give an -o elsewhere" if full else "give an -o that can be written"
    return OutputError(f"cannot write {file}: {reason}; {remedy}")


def _slugs(things: Sequence[str]) -> dict[str, str]:
    """{thing: its part of a file name}, all different."""
    slugs: dict[str, str] = {}
    for thing in things:
        base = slug = re.sub(r"\W+", "-", thing.lower()).strip("-")[:MAX_SLUG] or "thing"
        number = 2
        while slug in slugs.values():
            slug, number = f"{base}-{number}", number + 1
        slugs[thing] = slug
    return slugs


def _plain(value: object) -> object:
    """NumPy scalars and arrays as JSON's own types."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
