"""Norm and modulation in plain torch."""

import torch
from torch import Tensor

from framert.kernels.quantize_rows.reference import Kind, quantize_rows


def norm_modulate(
    x: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float,
    center: bool = False,
    quantize: Kind | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``x / sqrt(mean(x^2) + eps) * multiplier[row[frame]]``; see the api. Also runs in float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = modulate(x.to(wide), multiplier, row, frame, eps=eps, center=center)
    return y.to(x.dtype) if quantize is None else quantize_rows(y, quantize)


def modulate(x: Tensor, multiplier: Tensor, row: Tensor, frame: Tensor, *, eps: float, center: bool) -> Tensor:
    """Return the normed and multiplied x, (tokens, hidden) in ``x``'s dtype (float32 or float64)."""
    if center:
        x = x - x.mean(-1, keepdim=True)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed * multiplier.to(x.dtype).index_select(0, row.index_select(0, frame))
