"""Guidance and solver row in plain torch."""

import torch
from torch import Tensor


def update(
    output: Tensor,
    latents: Tensor,
    history: Tensor,
    guidance_index: Tensor,
    guidance_weight: Tensor,
    update: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new latents, the new history and the velocity, nothing in place. Also runs in float64."""
    velocity = torch.zeros_like(latents)
    for index, weight in zip(guidance_index.unbind(1), guidance_weight.unbind(1), strict=True):  # in this order
        branch = output.index_select(0, index).to(latents.dtype) * weight.unsqueeze(1)
        velocity = velocity + branch.where(weight.unsqueeze(1) != 0, 0.0)
    a, b, c, d, e, f = update.unsqueeze(2).unbind(1)
    return a * latents + b * velocity + c * history, d * latents + e * velocity + f * history, velocity
