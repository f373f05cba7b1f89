"""RMSNorm or LayerNorm of packed tokens, times the multiplier of each token's frame, shifted or quantized if asked."""

from typing import overload

import torch
from torch import Tensor

from framert.kernels.checks import FLOATS, check, check_beside, check_quantize
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.norm_modulate import reference
from framert.kernels.quantize_rows.reference import DTYPE, Kind


@overload
def norm_modulate(
    x: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float,
    center: bool = False,
    shift: Tensor | None = None,
    quantize: None = None,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def norm_modulate(
    x: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float,
    center: bool = False,
    shift: Tensor | None = None,
    quantize: Kind,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def norm_modulate(
    x: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float,
    center: bool = False,
    shift: Tensor | None = None,
    quantize: Kind | None = None,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``x / sqrt(mean(x^2) + eps) * multiplier[row[frame]] + shift[row[frame]]`` of each packed token.

    Args:
        x: (tokens, hidden), bf16, fp16 or fp32, contiguous.
        multiplier: (rows, hidden), fp32 or a half precision, any row stride: one column of the modulation arena.
        row: (frames,) int32, the multiplier row of each packed frame; frame: (tokens,) int32, each token's frame.
        eps: added to the mean square.
        center: subtract the mean first: LayerNorm without weight and bias.
        shift: shape, dtype and row stride of ``multiplier``: another column of the same arena; None adds nothing.
        quantize: None, or the per-token symmetric format of the result.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
    Returns: (tokens, hidden), dtype of ``x``, computed in fp32 and rounded once. With ``quantize``: y int8 or
        float8_e4m3fn and scale (tokens,) fp32; the value is ``y * scale[:, None]``.
    Raises: ShapeError if shapes, dtypes or devices disagree; ConfigError for an unknown ``quantize``; BackendError
        where ``impl`` or float8 cannot run.
    Source: OneDiffusion, arXiv:2411.16318, NextDiT block and final layer; with ``center`` and ``shift`` the modulation
        of Stable Diffusion 3, arXiv:2403.03206.
    """
    name = "norm_modulate"
    check(name, "x", x, (None, None), FLOATS)
    tokens, hidden = x.shape
    check(name, "multiplier", multiplier, (None, hidden), FLOATS, contiguous_from=1, device=x.device)
    check(name, "row", row, (None,), (torch.int32,), device=x.device)
    check(name, "frame", frame, (tokens,), (torch.int32,), device=x.device)
    check_quantize(name, quantize, x)
    check_beside(name, "shift", shift, "multiplier", multiplier)
    if not use_triton(impl, x, name):
        return reference.norm_modulate(
            x, multiplier, row, frame, eps=eps, center=center, shift=shift, quantize=quantize
        )
    from framert.kernels.norm_modulate import kernel

    y = torch.empty_like(x, dtype=x.dtype if quantize is None else DTYPE[quantize])
    scale = None if quantize is None else torch.empty(tokens, dtype=torch.float32, device=x.device)
    kernel.launch(x, multiplier, row, frame, y, scale, eps=eps, center=center, quantize=quantize, shift=shift)
    return y if scale is None else (y, scale)
