"""SwiGLU in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional

from framert.kernels.quantize_rows.reference import Kind, quantize_rows


def swiglu(gate_up: Tensor, *, quantize: Kind | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``silu(gate) * up`` of the two halves of the last axis; see the api. Also runs in float64."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    y = functional.silu(gate) * up
    return y.to(gate_up.dtype) if quantize is None else quantize_rows(y, quantize)
