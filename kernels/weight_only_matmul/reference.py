"""Product with four-bit weights in plain torch."""

import torch
from torch import Tensor

from framert.kernels.weight_only_matmul.packing import unpack_int4


def weight_only_matmul(a: Tensor, packed: Tensor, scale: Tensor, *, group: int, out_dtype: torch.dtype) -> Tensor:
    """Return ``a @ W.T`` for the weights W that (packed, scale) stand for; in fp32, or in fp64 where ``a`` is.

    Args: as in the api.
    """
    exact = torch.float64 if a.dtype == torch.float64 else torch.float32
    weight = unpack_int4(packed, scale, group, exact)[:, : a.shape[1]]
    return (a.to(exact) @ weight.T).to(out_dtype)
