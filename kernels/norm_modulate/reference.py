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
    shift: Tensor | None = None,
    quantize: Kind | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``x / sqrt(mean(x^2) + eps) * multiplier[row[frame]] + shift[row[frame]]``; see the api.

    Also runs in float64.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = modulate(x.to(wide), multiplier, row, frame, eps=eps, center=center, shift=shift)
    return y.to(x.dtype) if quantize is None else quantize_rows(y, quantize)


def modulate(
    x: Tensor, multiplier: Tensor, row: Tensor, frame: Tensor, *, eps: float, center: bool, shift: Tensor | None = None
) -> Tensor:
    """Return the normed, multiplied and shifted x, (tokens, hidden) in ``x``'s dtype (float32 or float64)."""
    if center:
        x = x - x.mean(-1, keepdim=True)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = normed * per_token(multiplier, row, frame, x.dtype)
    return y if shift is None else y + per_token(shift, row, frame, x.dtype)


def per_token(column: Tensor, row: Tensor, frame: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``column[row[frame]]``, (tokens, hidden)."""
    return column.to(dtype).index_select(0, row.index_select(0, frame))
