"""Arrays with names in one safetensors file: a JSON header and raw little-endian values, nothing that could run."""

import json
import math
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from framert.runtime.arrays import Array
from framert.runtime.errors import CompiledRequestError, OutputError

HEADER_LIMIT = 100_000_000  # bytes, as the format defines it
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
WORDS = {dtype: word for word, dtype in DTYPES.items()}
ALIGNMENT = 8  # bytes; the header is padded so that values can be read where they lie


def write(
    file: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str], *, force: bool = False
) -> Path:
    """Write arrays of float32, int32 or int64 and texts; the file appears whole or not at all.

    Raises: OutputError if something stands there and ``force`` is false, or the folder cannot be written.
    """
    path = Path(file)
    if not force and os.path.lexists(path):
        raise OutputError(f"{path} exists; give another -o, or --force (in Python force=True) to replace")
    header, values = _header(arrays, metadata)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(struct.pack("<Q", len(header)) + header)
            for array in values:
                stream.write(array.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(f"cannot write {path}: {reason}; give an -o that can be written") from error
    finally:
        if temporary.name and os.path.lexists(temporary):
            temporary.unlink()
    return path


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> tuple[bytes, list[Array]]:
    # The widest values first, so that every tensor is aligned to its own width.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    values, begin = [], 0
    for name in order:
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        word = WORDS[array.dtype]
        entries[name] = {
            "dtype": word,
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, begin + array.nbytes],
        }
        values.append(array)
        begin += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT), values


def read(file: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays and the texts of a file.

    Raises: CompiledRequestError if it is missing, truncated or damaged.
    """
    path = Path(file)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CompiledRequestError(f"cannot read {path}: {reason}; framert compile-request makes one") from error
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, len(content) - 8):
        raise CompiledRequestError(f"{path} is truncated or no safetensors file ({len(content)} bytes); {REMEDY}")
    try:
        header = json.loads(content[8 : 8 + length])
        metadata = {str(key): _text(value) for key, value in header.pop("__metadata__", {}).items()}
        entries = {name: _entry(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CompiledRequestError(f"{path} has a damaged header; {REMEDY}") from error
    base, end = 8 + length, max((end for *_, end in entries.values()), default=0)
    if base + end != len(content):
        state = "truncated" if base + end > len(content) else "longer than its header says"
        raise CompiledRequestError(f"{path} is {state}: {len(content)} bytes, {base + end} expected; {REMEDY}")
    arrays: dict[str, Array] = {
        name: np.frombuffer(content, dtype, math.prod(shape), base + begin).reshape(shape)
        for name, (dtype, shape, begin, _) in entries.items()
    }
    return arrays, metadata


REMEDY = "compile the request again"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _entry(entry: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    shape = tuple(entry["shape"])
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (*shape, begin, end))
    if not whole or min((*shape, begin), default=0) < 0 or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(entry)
    return dtype, shape, begin, end
