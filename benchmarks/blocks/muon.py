"""Muon: momentum whose matrices are orthogonalised, for hidden matrices and kernels; AdamW takes the rest.

Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); update scale of
"Muon is scalable for LLM training", arXiv:2502.16982, under which AdamW's rate and weight decay serve both.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices of (n, rows, columns), about, by Newton-Schulz in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2).contiguous() if tall else x  # sums of differently ordered matrices are slow
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Updates matrices in batches of equal shape; the kernel of a convolution counts as a matrix of (out, the rest)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(parameters, shape, group)

    def _update(self, parameters: list[nn.Parameter], shape: torch.Size, group: dict[str, float]) -> None:
        directions = []
        for parameter in parameters:
            moving = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            moving.lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(torch.lerp(parameter.grad, moving, group["momentum"]))
        matrices = torch.stack(directions).flatten(2)
        updates = orthogonalise(matrices) * (0.2 * max(matrices.shape[1:]) ** 0.5)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view(shape), alpha=-group["lr"])
