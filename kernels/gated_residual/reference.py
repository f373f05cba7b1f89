"""Gated residual in plain torch."""

import torch
from torch import Tensor

from framert.kernels.norm_modulate.reference import modulate, per_token
from framert.kernels.quantize_rows.reference import Kind, quantize_rows


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
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Return ``x + y / sqrt(mean(y^2) + eps) * multiplier[row[frame]]``; see the api. Also runs in float64.

    With ``eps`` None y is not normed.
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    if eps is None:
        branch = y.to(wide) * per_token(multiplier, row, frame, wide)
    else:
        branch = modulate(y.to(wide), multiplier, row, frame, eps=eps, center=False)
    new = (x.to(wide) + branch).to(x.dtype)
    if next_multiplier is None:
        return new
    next_eps = eps if next_eps is None else next_eps
    assert next_eps is not None
    modulated = modulate(new.to(wide), next_multiplier, row, frame, eps=next_eps, center=next_center, shift=next_shift)
    if quantize is None:
        return new, modulated.to(y.dtype)
    return new, *quantize_rows(modulated, quantize)
