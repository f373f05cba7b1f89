"""Symmetric quantization per row in plain torch."""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["int8", "fp8"]
LIMIT = {"int8": 127.0, "fp8": 448.0}  # the largest value of each kind
DTYPE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LEAST = 1e-30  # rows below it become zeros: the reciprocal of less overflows fp32


def quantize_rows(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return (q, scale) with ``x`` close to ``q * scale[:, None]``, each row's largest magnitude at the limit of q.

    Args:
        x: (rows, width), any float dtype; computed in fp32, or in fp64 where x is.
        kind: "int8" (-127..127, ties to even) or "fp8" (e4m3, largest 448).
    Returns: q (rows, width) int8 or float8_e4m3fn; scale (rows,) fp32 or fp64.
    """
    exact = x if x.dtype == torch.float64 else x.float()
    largest = exact.abs().amax(dim=1) if x.shape[1] else exact.new_zeros(x.shape[0])
    inverse = torch.where(largest > LEAST, LIMIT[kind] / largest.clamp(min=LEAST), 0)
    scaled = exact * inverse[:, None]
    return (scaled.round() if kind == "int8" else scaled).to(DTYPE[kind]), largest / LIMIT[kind]
