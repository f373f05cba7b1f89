"""Four-bit weights: how they are rounded, and where their halves lie.

A row is cut into groups of 64 or 128 weights with one scale each. Byte j of a group holds its weight j in the low half
and its weight j + group / 2 in the high half, both plus 8: so the two halves of a group are two plain tiles, and no
kernel has to interleave them. A row whose length is no multiple of the group ends in zeros.
"""

import torch
from torch import Tensor

from framert.runtime.errors import ConfigError, ShapeError

GROUPS = (64, 128)
LARGEST = 8.0  # weights are -8..7 times the scale


def pack_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return (packed, scale) of a weight matrix, four bits per weight.

    The weight of largest magnitude in a group becomes -8, so the scale has the opposite sign of it: all 16 levels are
    used (22 % less squared error on Gaussian weights than -7..7).

    Args:
        weight: (n, k), any float dtype, finite.
        group: 64 or 128 weights along k share a scale.
    Returns: packed (n, ceil(k / group) * group / 2) uint8; scale (n, ceil(k / group)), fp16 or bf16 where ``weight``
        is, else fp32. Weights are rounded with the scale as it is stored.
    Raises: ShapeError if ``weight`` is not a float matrix; ConfigError for another group.
    """
    if group not in GROUPS:
        raise ConfigError(f"pack_int4: group is {group!r}; choose one of {', '.join(map(str, GROUPS))}")
    if weight.dim() != 2 or not weight.is_floating_point() or not weight.numel():
        raise ShapeError(f"pack_int4: weight is {tuple(weight.shape)} {weight.dtype}; give (n, k) of a float dtype")
    n, k = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -k % group)).view(n, -1, group)
    extreme = padded.gather(2, padded.abs().argmax(dim=2, keepdim=True))
    half = weight.dtype in (torch.float16, torch.bfloat16)
    scale = (extreme / -LARGEST).to(weight.dtype if half else torch.float32)
    steps = torch.where(scale != 0, padded / scale.float(), 0).round().clamp(-LARGEST, LARGEST - 1)
    low, high = (steps + LARGEST).to(torch.uint8).chunk(2, dim=2)
    return (low | high << 4).view(n, -1), scale[..., 0]


def unpack_int4(packed: Tensor, scale: Tensor, group: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights (n, groups * group) that (packed, scale) stand for, padding included, in ``dtype``."""
    halves = packed.view(packed.shape[0], -1, group // 2)
    steps = torch.cat([halves & 15, halves >> 4], dim=2).to(dtype) - LARGEST
    return (steps * scale[..., None].to(dtype)).flatten(1)
