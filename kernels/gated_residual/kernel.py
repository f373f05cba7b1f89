"""Gated residual in Triton: the sum, and the norm that reads it next, while the row is in registers."""

from typing import Any, Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.quantize_rows.reference import Kind
from framert.kernels.rows import (
    FINAL_EPS,
    POINTER,
    bytes_of,
    centered,
    inverse_norm,
    kinds,
    multipliers,
    options,
    row_tile,
    specialize,
    store_rows,
)
from framert.kernels.specialization import ModelShape, Specialization


@triton.jit(do_not_specialize=["tokens"])
def _gated_residual_kernel(
    x_ptr,  # (tokens, WIDTH)
    y_ptr,  # (tokens, WIDTH)
    multiplier_ptr,  # (rows, WIDTH), multiplier_stride apart
    next_multiplier_ptr,  # (rows, WIDTH), next_stride apart, or None
    next_shift_ptr,  # (rows, WIDTH), next_stride apart, or None
    row_ptr,  # (frames,) int32
    frame_ptr,  # (tokens,) int32
    tokens,
    multiplier_stride,
    next_stride,
    new_ptr,  # (tokens, WIDTH)
    modulated_ptr,  # (tokens, WIDTH), or None
    scale_ptr,  # (tokens,) fp32, or None
    EPS: tl.constexpr,
    NEXT_EPS: tl.constexpr,
    NEXT_CENTER: tl.constexpr,
    QUANTIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    token_mask = token < tokens
    mask = token_mask[:, None] & (column < WIDTH)[None, :]
    offset = token[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y = tl.load(y_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    gate = multipliers(multiplier_ptr, multiplier_stride, row_ptr, frame_ptr, token, token_mask, column, mask)
    branch = y * gate
    if EPS is not None:
        branch = branch * inverse_norm(y, EPS, WIDTH)[:, None]
    new = (x + branch).to(new_ptr.dtype.element_ty)
    tl.store(new_ptr + offset, new, mask=mask)
    if modulated_ptr is not None:
        # of the rounded sum, which is what a later layer reads
        scale = multipliers(next_multiplier_ptr, next_stride, row_ptr, frame_ptr, token, token_mask, column, mask)
        new = new.to(tl.float32)
        if NEXT_CENTER:
            new = centered(new, mask, WIDTH)
        factor = inverse_norm(new, NEXT_EPS, WIDTH)
        modulated = new * scale
        if next_shift_ptr is not None:
            shift = multipliers(next_shift_ptr, next_stride, row_ptr, frame_ptr, token, token_mask, column, mask)
            modulated = modulated * factor[:, None] + shift
            factor = tl.full((ROWS,), 1.0, tl.float32)
        store_rows(modulated, factor, mask, modulated_ptr, offset, scale_ptr, token, token_mask, QUANTIZE)


def _constants(
    width: int,
    itemsize: int,
    *,
    eps: float | None,
    next_eps: float | None,
    next_center: bool,
    quantize: Kind | None,
) -> tuple[dict[str, Any], int]:
    """Return the constexpr arguments and the number of warps: one choice for both ways to compile."""
    rows, block, warps = row_tile("gated_residual", width, itemsize)
    return {
        "EPS": eps,
        "NEXT_EPS": next_eps,
        "NEXT_CENTER": next_center,
        "QUANTIZE": quantize,
        "WIDTH": width,
        "ROWS": rows,
        "BLOCK": block,
    }, warps


def launch(
    x: Tensor,
    y: Tensor,
    multiplier: Tensor,
    next_multiplier: Tensor | None,
    row: Tensor,
    frame: Tensor,
    new: Tensor,
    modulated: Tensor | None,
    scale: Tensor | None,
    *,
    eps: float | None,
    next_eps: float | None,
    next_center: bool,
    quantize: Kind | None,
    next_shift: Tensor | None = None,
) -> None:
    """Launch on checked arguments; writes all of ``new`` and of what else is given of the three results."""
    tokens, width = x.shape
    constants, warps = _constants(
        width,
        max(x.element_size(), y.element_size()),
        eps=eps,
        next_eps=next_eps,
        next_center=next_center,
        quantize=quantize,
    )
    next_stride = multiplier.stride(0) if next_multiplier is None else next_multiplier.stride(0)
    if x.numel():
        _gated_residual_kernel[(triton.cdiv(tokens, constants["ROWS"]),)](
            x, y, multiplier, next_multiplier, next_shift, row, frame, tokens, multiplier.stride(0), next_stride,
            new, modulated, scale, **constants, **options(warps),
        )  # fmt: skip


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """The sum alone, and with the RMSNorm (each format) or the final LayerNorm after it; multipliers are fp32."""
    variants: list[tuple[str, bool, bool, Kind | None]] = [
        ("", False, False, None),
        ("_norm", True, False, None),
        ("_center", True, True, None),
    ]
    variants += [(f"_norm_{kind}", True, False, kind) for kind in kinds(capability)]
    found = []
    for suffix, fused, center, quantize in variants:
        next_eps = FINAL_EPS if center else shape.norm_eps
        constants, warps = _constants(
            shape.hidden, bytes_of(dtype), eps=shape.norm_eps, next_eps=next_eps, next_center=center, quantize=quantize
        )
        types = {
            "x_ptr": f"*{dtype}",
            "y_ptr": f"*{dtype}",
            "multiplier_ptr": "*fp32",
            "row_ptr": "*i32",
            "frame_ptr": "*i32",
            "tokens": "i32",
            "multiplier_stride": "i32",
            "next_stride": "i32",
            "new_ptr": f"*{dtype}",
        }
        if fused:
            types |= {"next_multiplier_ptr": "*fp32", "modulated_ptr": POINTER[quantize] if quantize else f"*{dtype}"}
        if quantize:
            types["scale_ptr"] = "*fp32"
        divisible = {"x_ptr", "y_ptr", "multiplier_ptr", "next_multiplier_ptr", "new_ptr", "modulated_ptr"} & set(types)
        if shape.hidden % 16 == 0:
            divisible |= {"multiplier_stride", "next_stride"}
        name = f"gated_residual_{dtype}_{shape.hidden}{suffix}"
        found.append(specialize(name, _gated_residual_kernel, types, constants, warps=warps, divisible=divisible))
    return found
