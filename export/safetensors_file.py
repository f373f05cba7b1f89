"""Read safetensors files one tensor at a time: a JSON header and raw values, nothing that could run."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from framert.runtime.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # bytes, as the format defines it
BF16 = "BF16"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, BF16: 2}
OTHER_WIDTHS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies. begin: its offset in the file, in bytes."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    def read(self) -> NDArray[np.float32]:
        """Return the values as float32; only this tensor's bytes are read."""
        if self.dtype not in WIDTHS:
            raise CheckpointError(
                f"{self.file}: {self.name} is stored as {self.dtype}; supported are {', '.join(WIDTHS)}, so convert it"
            )
        count = math.prod(self.shape)
        raw = np.fromfile(self.file, dtype=f"<u{WIDTHS[self.dtype]}", count=count, offset=self.begin)
        if raw.size != count:
            raise CheckpointError(f"{self.file} became shorter while it was read; download it again")
        if self.dtype == BF16:  # the upper half of a float32
            values = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view(f"<f{WIDTHS[self.dtype]}").astype(np.float32, copy=False)
        return values.reshape(self.shape)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name, after checking that every one lies inside the file.

    Raises: CheckpointError if the file is truncated or not safetensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, max(size - 8, 0)):
            raise CheckpointError(f"{file} is not a safetensors file or is truncated ({size} bytes); download it again")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: _entry(file, name, header[name], 8 + length) for name in header if name != "__metadata__"}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} has a damaged safetensors header; download it again") from error
    end = max((_end(tensor) for tensor in tensors.values()), default=8 + length)
    if end > size:
        raise CheckpointError(f"{file} is truncated: {size} bytes, {end} expected; download it again")
    return tensors


def _entry(file: Path, name: str, entry: dict[str, object], base: int) -> StoredTensor:
    offsets, shape = entry["data_offsets"], entry["shape"]
    if not isinstance(offsets, list) or not isinstance(shape, list):
        raise TypeError(name)
    begin, end = (int(offset) for offset in offsets)
    tensor = StoredTensor(file, name, str(entry["dtype"]), tuple(int(side) for side in shape), base + begin)
    if begin < 0 or _end(tensor) - tensor.begin != end - begin:
        raise ValueError(name)
    return tensor


def _end(tensor: StoredTensor) -> int:
    return tensor.begin + math.prod(tensor.shape) * (WIDTHS | OTHER_WIDTHS)[tensor.dtype]
