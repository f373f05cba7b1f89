"""torch's own products of 8-bit operands: which devices have them, and how they are called."""

import torch
from torch import Tensor

from framert.runtime.errors import BackendError

# Row-wise scales exist in torch for these; on sm_120 cuBLASLt refuses them (pytorch#192707).
ROW_WISE = frozenset({(8, 9), (9, 0), (10, 0)})


def preferred(a: Tensor, b: Tensor, out_dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Return whether "auto" takes torch's product.

    Only for fp8: the int8 product of torch has no scales, so that its int32 sums would be written and read once more.
    torch needs bf16 results, and k and n that are multiples of 16.
    """
    return (
        a.is_cuda
        and a.dtype == torch.float8_e4m3fn
        and torch.cuda.get_device_capability(a.device) in ROW_WISE
        and out_dtype == torch.bfloat16
        and (bias is None or bias.dtype == torch.bfloat16)
        and not a.shape[1] % 16
        and not b.shape[0] % 16
    )


def scaled_matmul(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """Raises: BackendError with torch's reason where it refuses these shapes or this device."""
    try:
        if a.dtype == torch.int8:
            result = torch._int_mm(a, b.T) * a_scale[:, None] * b_scale
            return (result if bias is None else result + bias).to(out_dtype)
        return torch._scaled_mm(a, b.T, scale_a=a_scale[:, None], scale_b=b_scale[None], bias=bias, out_dtype=out_dtype)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BackendError(f"scaled_matmul: torch refuses ({reason}); use impl='triton' or 'auto'") from error
