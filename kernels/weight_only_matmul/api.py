"""Products of half-precision activations with four-bit weights: W4A16."""

import torch
from torch import Tensor

from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.weight_only_matmul import reference
from framert.kernels.weight_only_matmul.packing import GROUPS
from framert.kernels.weight_only_matmul.packing import pack_int4 as pack_int4
from framert.runtime.errors import ConfigError, ShapeError

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (*HALVES, torch.float32)


def weight_only_matmul(
    a: Tensor,
    packed: Tensor,
    scale: Tensor,
    *,
    group: int,
    out_dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``a @ W.T`` for weights W in four bits, as ``pack_int4`` makes them.

    Products are summed in fp32, along k in the same order for every row: a row's result does not depend on the others.

    Args:
        a: (m, k) bf16 or fp16 (the reference takes fp32 too), contiguous.
        packed: (n, ceil(k / group) * group / 2) uint8, contiguous.
        scale: (n, ceil(k / group)) bf16, fp16 or fp32, contiguous.
        group: 64 or 128 weights along k share a scale.
        out_dtype: bf16, fp16 or fp32; None is the dtype of ``a``.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
    Returns: (m, n) ``out_dtype``, rounded once.
    Raises: ShapeError for shapes, dtypes or layouts that disagree; ConfigError for ``group`` or ``out_dtype``;
        BackendError if ``impl`` cannot run here.
    """
    if group not in GROUPS:
        raise ConfigError(f"weight_only_matmul: group is {group!r}; choose one of {', '.join(map(str, GROUPS))}")
    _check(a, packed, scale, group)
    out_dtype = a.dtype if out_dtype is None else out_dtype
    if out_dtype not in FLOATS:
        raise ConfigError(f"weight_only_matmul: out_dtype is {out_dtype}; choose one of {', '.join(map(str, FLOATS))}")
    if not use_triton(impl, a, "weight_only_matmul"):
        return reference.weight_only_matmul(a, packed, scale, group=group, out_dtype=out_dtype)
    if a.dtype not in HALVES:
        raise ShapeError(f"weight_only_matmul: a is {a.dtype}; triton takes bfloat16 and float16")
    from framert.kernels.weight_only_matmul import kernel

    out = torch.empty((a.shape[0], packed.shape[0]), dtype=out_dtype, device=a.device)
    kernel.weight_only_matmul(a, packed, scale, out, group)
    return out


def _check(a: Tensor, packed: Tensor, scale: Tensor, group: int) -> None:
    if a.dim() != 2 or not a.shape[1] or a.dtype not in FLOATS:
        raise ShapeError(f"weight_only_matmul: a is {tuple(a.shape)} {a.dtype}; give (m, k) of a float dtype")
    groups = -(-a.shape[1] // group)
    if packed.dim() != 2 or packed.dtype != torch.uint8 or packed.shape[1] != groups * group // 2 or not len(packed):
        raise ShapeError(
            f"weight_only_matmul: packed is {tuple(packed.shape)} {packed.dtype}; "
            f"k = {a.shape[1]} in groups of {group} needs (n, {groups * group // 2}) uint8"
        )
    if scale.shape != (len(packed), groups) or scale.dtype not in FLOATS:
        raise ShapeError(
            f"weight_only_matmul: scale is {tuple(scale.shape)} {scale.dtype}; "
            f"give ({len(packed)}, {groups}) of a float dtype"
        )
    for name, tensor in {"a": a, "packed": packed, "scale": scale}.items():
        if not tensor.is_contiguous() or tensor.device != a.device:
            raise ShapeError(
                f"weight_only_matmul: {name} must be contiguous and on {a.device}; it is on {tensor.device}"
            )
