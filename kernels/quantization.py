"""Per-row symmetric quantization: the formats, their largest values, and the plain-torch rule kernels are held to."""

from typing import Literal

import torch
from torch import Tensor

from framert.runtime.errors import BackendError, ConfigError

Kind = Literal["int8", "fp8"]

DTYPES: dict[str, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LIMITS: dict[str, float] = {"int8": 127.0, "fp8": 448.0}
# Takes the place of the largest magnitude of a row of zeros, so that its scale is a normal positive number.
TINY = 2.0**-100
FP8_CAPABILITY = (8, 9)  # the first compute capability that converts to float8


def check_kind(kind: str | None, tensor: Tensor, kernel: str) -> None:
    """Raise ConfigError for an unknown kind, BackendError where the device has no float8; None is allowed."""
    if kind is None:
        return
    if kind not in DTYPES:
        raise ConfigError(f"{kernel}: unknown quantize {kind!r}; choose one of None, 'int8', 'fp8'")
    if kind == "fp8" and tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < FP8_CAPABILITY:
        raise BackendError(
            f"{kernel}: quantize='fp8' needs compute capability 8.9 or newer, "
            f"{torch.cuda.get_device_name(tensor.device)} has no float8; use quantize='int8'"
        )


def quantize_reference(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return each row of ``x`` on its own symmetric grid: ``x`` is about ``q * scale[..., None]``.

    The scale is the row's largest magnitude over the format's largest value; rounding is to nearest even.

    Args:
        x: (..., width), float32 or float64.
    Returns: q, (..., width) int8 or float8_e4m3fn, and scale, (...) of ``x``'s dtype.
        A row with NaN or infinity has a non-finite scale.
    """
    limit = LIMITS[kind]
    scale = x.abs().amax(-1).clamp(min=TINY) / limit
    grid = (x / scale.unsqueeze(-1)).clamp(-limit, limit)
    return (grid.round() if kind == "int8" else grid).to(DTYPES[kind]), scale
