"""Gated residual in plain torch."""

import torch
from torch import Tensor

from framert.kernels.norm_modulate.reference import modulate
from framert.kernels.quantize_rows.reference import Kind, quantize_rows


def gated_residual(
    x: Tensor,
    y: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    *,
    eps: float,
    next_multiplier: Tensor | None = None,
    next_eps: float | None = None,
    next_center: bool = False,
    quantize: Kind | None = None,
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Return ``x + y / sqrt(mean(y^2) + eps) * multiplier[row[frame]]``; see the api. Also runs in float64."""
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    new = (x.to(wide) + modulate(y.to(wide), multiplier, row, frame, eps=eps, center=False)).to(x.dtype)
    if next_multiplier is None:
        return new
    next_eps = eps if next_eps is None else next_eps
    modulated = modulate(new.to(wide), next_multiplier, row, frame, eps=next_eps, center=next_center)
    if quantize is None:
        return new, modulated.to(y.dtype)
    return new, *quantize_rows(modulated, quantize)
