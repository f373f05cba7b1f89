"""Scaled matrix product of quantized operands in plain torch."""

import torch
from torch import Tensor


def scaled_matmul(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """Return ``(a * a_scale) @ (b * b_scale).T + bias``: fp32 products (exact for int8), fp64 where the scales are.

    Args: as in the api; ``a_scale`` fp64 makes everything fp64.
    """
    exact = a_scale.dtype if a_scale.dtype == torch.float64 else torch.float32
    if a.dtype == torch.int8:
        product = (a.double() @ b.double().T if a.is_cuda else torch._int_mm(a, b.T)).to(exact)  # both are exact
    else:
        product = a.to(exact) @ b.to(exact).T
    result = product * a_scale[:, None] * b_scale.to(exact)
    return (result if bias is None else result + bias.to(exact)).to(out_dtype)
