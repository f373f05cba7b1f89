"""Products of quantized activations and weights: W8A8, scales per token and per output channel."""

from typing import Literal

import torch
from torch import Tensor

from framert.kernels.checks import FP8_CAPABILITY
from framert.kernels.dispatch import use_triton
from framert.kernels.scaled_matmul import reference, vendor
from framert.runtime.errors import BackendError, ConfigError, ShapeError

Impl = Literal["auto", "triton", "torch", "reference"]
KINDS = (torch.int8, torch.float8_e4m3fn)
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def scaled_matmul(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``(a * a_scale[:, None]) @ (b * b_scale[:, None]).T + bias``.

    int8 products are summed exactly in int32, fp8 products in fp32, always along k in the same order: a row's result
    does not depend on the other rows (torch's fp8 product may choose another order for another number of rows).

    Args:
        a: (m, k) int8 or float8_e4m3fn, contiguous: activations, quantized per token.
        b: (n, k), dtype of ``a``, contiguous: weights, quantized per output channel.
        a_scale: (m,) fp32, contiguous. b_scale: (n,) fp32, contiguous.
        out_dtype: bf16, fp16 or fp32.
        bias: (n,) of a float dtype, added before rounding.
        impl: "auto" is, for CUDA tensors, torch where it multiplies with row-wise scales (fp8 into bf16 on compute
            capability 8.9, 9.0, 10.0) and triton elsewhere; for CPU tensors the reference. "torch" is
            torch._scaled_mm or torch._int_mm.
    Returns: (m, n) ``out_dtype``, rounded once.
    Raises: ShapeError for shapes, dtypes or layouts that disagree; ConfigError for ``out_dtype``; BackendError if
        ``impl`` cannot run here.
    """
    _check(a, b, a_scale, b_scale, bias)
    if out_dtype not in FLOATS:
        raise ConfigError(f"scaled_matmul: out_dtype is {out_dtype}; choose one of {', '.join(map(str, FLOATS))}")
    if impl == "torch" or (impl == "auto" and vendor.preferred(a, b, out_dtype, bias)):
        return vendor.scaled_matmul(a, b, a_scale, b_scale, bias, out_dtype)
    if impl not in ("auto", "triton", "reference"):
        raise BackendError(f"scaled_matmul: unknown impl {impl!r}; choose one of auto, triton, torch, reference")
    if not use_triton(impl, a, "scaled_matmul"):
        return reference.scaled_matmul(a, b, a_scale, b_scale, out_dtype=out_dtype, bias=bias)
    if (
        a.is_cuda
        and a.dtype == torch.float8_e4m3fn
        and (device := torch.cuda.get_device_capability(a.device)) < FP8_CAPABILITY
    ):
        raise BackendError(
            f"scaled_matmul: fp8 needs compute capability 8.9 or newer, this device has {device}; use int8"
        )
    from framert.kernels.scaled_matmul import kernel

    out = torch.empty((a.shape[0], b.shape[0]), dtype=out_dtype, device=a.device)
    kernel.scaled_matmul(a, b, a_scale, b_scale, bias, out)
    return out


def _check(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ShapeError(f"scaled_matmul: a is {tuple(a.shape)}, b {tuple(b.shape)}; give (m, k) and (n, k)")
    if a.dtype != b.dtype or a.dtype not in KINDS:
        raise ShapeError(f"scaled_matmul: a is {a.dtype}, b {b.dtype}; both must be int8 or both float8_e4m3fn")
    expected = {"a_scale": (a_scale, a.shape[0]), "b_scale": (b_scale, b.shape[0]), "bias": (bias, b.shape[0])}
    for name, (tensor, length) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != (length,) or not tensor.is_floating_point():
            raise ShapeError(
                f"scaled_matmul: {name} is {tuple(tensor.shape)} {tensor.dtype}; give ({length},) of a float dtype"
            )
    for name, tensor in {"a_scale": a_scale, "b_scale": b_scale}.items():
        if tensor.dtype != torch.float32:
            raise ShapeError(f"scaled_matmul: {name} is {tensor.dtype}; give float32")
    for name, tensor in {"a": a, "b": b, "a_scale": a_scale, "b_scale": b_scale}.items():
        if not tensor.is_contiguous() or tensor.device != a.device:
            raise ShapeError(f"scaled_matmul: {name} must be contiguous and on {a.device}; it is on {tensor.device}")
