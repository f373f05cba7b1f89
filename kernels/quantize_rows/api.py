"""Symmetric quantization per row: activations per token, weights per output channel."""

import torch
from torch import Tensor

from framert.kernels.checks import check_quantize
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.quantize_rows import reference
from framert.kernels.quantize_rows.reference import DTYPE, Kind
from framert.runtime.errors import ConfigError, ShapeError


def quantize_rows(x: Tensor, kind: Kind, *, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """Return (q, scale) with ``x`` close to ``q * scale[:, None]``.

    A row's result depends on that row alone. Every row's largest magnitude becomes 127 (int8) or 448 (fp8-e4m3); a row
    of zeros has scale 0, and one with values that are not finite has a scale that is not finite.

    Args:
        x: (rows, width) fp16, bf16 or fp32 (the reference takes fp64 too), last axis contiguous, any row stride.
        kind: "int8" or "fp8".
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
    Returns: q (rows, width) int8 or float8_e4m3fn, contiguous; scale (rows,) fp32 (fp64 for fp64).
    Raises: ShapeError for a wrong shape, dtype or layout; ConfigError for an unknown kind; BackendError if ``impl``
        cannot run here, or the device has no float8.
    """
    if kind not in DTYPE:
        raise ConfigError(f"quantize_rows: kind is {kind!r}; choose one of {', '.join(DTYPE)}")
    if x.dim() != 2 or not x.is_floating_point():
        raise ShapeError(f"quantize_rows: x is {tuple(x.shape)} {x.dtype}; give (rows, width) of a float dtype")
    if not use_triton(impl, x, "quantize_rows"):
        return reference.quantize_rows(x, kind)
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32) or (x.shape[1] > 1 and x.stride(1) != 1):
        raise ShapeError(
            f"quantize_rows: x is {x.dtype} with strides {x.stride()}; triton takes fp16, bf16 or fp32, "
            "last axis contiguous"
        )
    check_quantize("quantize_rows", kind, x)
    from framert.kernels.quantize_rows import kernel

    q = torch.empty(x.shape, dtype=DTYPE[kind], device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    kernel.quantize_rows(x, q, scale, kind)
    return q, scale
