"""Residual sum of packed tokens with a gated branch, normed or plain, and if asked the norm that reads the sum next."""

from typing import overload

import torch
from torch import Tensor

from framert.kernels.checks import FLOATS, check, check_beside, check_quantize
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.gated_residual import reference
from framert.kernels.quantize_rows.reference import DTYPE, Kind
from framert.runtime.errors import ConfigError


@overload
def gated_residual(
    x: Tensor, y: Tensor, multiplier: Tensor, row: Tensor, frame: Tensor, *, eps: float | None, impl: Impl = "auto"
) -> Tensor: ...


@overload
def gated_residual(
    x: Tensor,
    y: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float | None,
    next_multiplier: Tensor,
    next_eps: float | None = None,
    next_center: bool = False,
    next_shift: Tensor | None = None,
    quantize: None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def gated_residual(
    x: Tensor,
    y: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float | None,
    next_multiplier: Tensor,
    next_eps: float | None = None,
    next_center: bool = False,
    next_shift: Tensor | None = None,
    quantize: Kind,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]: ...


def gated_residual(
    x: Tensor,
    y: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float | None,
    next_multiplier: Tensor | None = None,
    next_eps: float | None = None,
    next_center: bool = False,
    next_shift: Tensor | None = None,
    quantize: Kind | None = None,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Return ``x + y / sqrt(mean(y^2) + eps) * multiplier[row[frame]]``, and ``norm_modulate`` of it if asked.

    Args:
        x: (tokens, hidden), the residual stream, bf16, fp16 or fp32, contiguous. Never written.
        y: (tokens, hidden), the branch, any of these dtypes, contiguous.
        multiplier: (rows, hidden), fp32 or a half precision, any row stride; tanh(gate) * weight.
        row: (frames,) int32, the multiplier row of each packed frame; frame: (tokens,) int32, each token's frame.
        eps: added to the mean square of ``y``; None: ``y`` is not normed, its gate is the multiplier alone.
        next_multiplier: as ``multiplier``: also return ``norm_modulate`` of the sum (as rounded to ``x``'s dtype)
            with it, the same rows and frames, ``next_eps`` (None: ``eps``), ``next_center`` and ``next_shift`` (of the
            row stride of ``next_multiplier``).
        quantize: None, or the per-token symmetric format of that second result.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
    Returns: the sum, (tokens, hidden), dtype of ``x``; with ``next_multiplier`` also the modulated sum, dtype of
        ``y``; with ``quantize`` that one is int8 or float8_e4m3fn and its scale (tokens,) fp32 follows.
        Computed in fp32, each result rounded once.
    Raises: ShapeError if shapes, dtypes or devices disagree; ConfigError for options of a second result without
        ``next_multiplier``, or an unknown ``quantize``; BackendError where ``impl`` or float8 cannot run.
    Source: OneDiffusion, arXiv:2411.16318, NextDiT block; with ``eps`` None that of Stable Diffusion 3,
        arXiv:2403.03206.
    """
    name = "gated_residual"
    check(name, "x", x, (None, None), FLOATS)
    tokens, hidden = x.shape
    check(name, "y", y, (tokens, hidden), FLOATS, device=x.device)
    check(name, "multiplier", multiplier, (None, hidden), FLOATS, contiguous_from=1, device=x.device)
    check(name, "row", row, (None,), (torch.int32,), device=x.device)
    check(name, "frame", frame, (tokens,), (torch.int32,), device=x.device)
    check_quantize(name, quantize, x)
    options = (next_eps is not None, next_center, next_shift is not None, quantize is not None)
    if next_multiplier is None and any(options):
        raise ConfigError(
            f"{name}: next_eps, next_center, next_shift and quantize describe the norm after the sum; give "
            "next_multiplier too"
        )
    following = eps if next_eps is None else next_eps
    if next_multiplier is not None and following is None:
        raise ConfigError(f"{name}: eps and next_eps are None, and the norm after the sum needs one; give next_eps")
    if next_multiplier is not None:
        check(name, "next_multiplier", next_multiplier, tuple(multiplier.shape), (multiplier.dtype,),
              contiguous_from=1, device=x.device)  # fmt: skip
        check_beside(name, "next_shift", next_shift, "next_multiplier", next_multiplier)
    if not use_triton(impl, x, name):
        return reference.gated_residual(
            x, y, multiplier, row, frame, eps=eps,
            next_multiplier=next_multiplier, next_eps=next_eps, next_center=next_center, next_shift=next_shift,
            quantize=quantize,
        )  # fmt: skip
    from framert.kernels.gated_residual import kernel

    new = torch.empty_like(x)
    modulated = scale = None
    if next_multiplier is not None:
        modulated = torch.empty_like(y, dtype=y.dtype if quantize is None else DTYPE[quantize])
    if quantize is not None:
        scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    kernel.launch(
        x, y, multiplier, next_multiplier, row, frame, new, modulated, scale,
        eps=eps, next_eps=following, next_center=next_center, quantize=quantize, next_shift=next_shift,
    )  # fmt: skip
    if modulated is None:
        return new
    return (new, modulated) if scale is None else (new, modulated, scale)
