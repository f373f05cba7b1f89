"""Checks of a kernel's arguments: every message names the kernel, the argument, what it is and what it must be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from framert.kernels.quantize_rows.reference import DTYPE
from framert.runtime.errors import BackendError, ConfigError, ShapeError

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8_CAPABILITY = (8, 9)  # the first compute capability that converts to float8


def check(
    kernel: str,
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    *,
    contiguous_from: int = 0,
    device: torch.device | None = None,
) -> None:
    """Raise ShapeError unless ``tensor`` is what ``kernel`` needs under ``name``.

    Args:
        shape: the size of each axis; None allows any.
        dtypes: those allowed.
        contiguous_from: the axes from this one on must lie densely; the ones before may have any stride.
        device: where the kernel's other tensors lie; None allows any.
    """
    sizes = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
    if tensor.dim() != len(shape) or any(
        size not in (None, own) for size, own in zip(shape, tensor.shape, strict=True)
    ):
        raise ShapeError(f"{kernel}: {name} has shape {tuple(tensor.shape)}; expected {sizes}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ShapeError(f"{kernel}: {name} is {str(tensor.dtype).removeprefix('torch.')}; allowed: {allowed}")
    if device is not None and tensor.device != device:
        raise ShapeError(f"{kernel}: {name} lies on {tensor.device}, the other arguments on {device}; move it there")
    expected = 1
    for axis in range(tensor.dim() - 1, contiguous_from - 1, -1):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != expected:
            raise ShapeError(
                f"{kernel}: {name} has strides {tensor.stride()} for shape {tuple(tensor.shape)}; "
                f"axes from {contiguous_from} on must be contiguous"
            )
        expected *= tensor.shape[axis]


def check_quantize(kernel: str, quantize: str | None, tensor: Tensor) -> None:
    """Raise ConfigError for an unknown format, BackendError where the device has no float8; None is allowed."""
    if quantize is None:
        return
    if quantize not in DTYPE:
        raise ConfigError(f"{kernel}: quantize is {quantize!r}; choose one of None, {', '.join(DTYPE)}")
    if quantize == "fp8" and tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < FP8_CAPABILITY:
        raise BackendError(
            f"{kernel}: quantize='fp8' needs compute capability 8.9 or newer, "
            f"{torch.cuda.get_device_name(tensor.device)} has no float8; use quantize='int8'"
        )


def check_beside(kernel: str, name: str, tensor: Tensor | None, other: str, beside: Tensor) -> None:
    """Raise ShapeError unless ``tensor``, if there is one, is another column of the arena that ``beside`` is one of."""
    if tensor is None:
        return
    check(kernel, name, tensor, tuple(beside.shape), (beside.dtype,), contiguous_from=1, device=beside.device)
    if tensor.shape[0] > 1 and tensor.stride(0) != beside.stride(0):
        raise ShapeError(
            f"{kernel}: rows of {name} are {tensor.stride(0)} values apart and those of {other} {beside.stride(0)}; "
            "give two columns of one arena"
        )
