"""Norm and modulation in Triton: whole rows in registers, read once and written once."""

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
def _norm_modulate_kernel(
    x_ptr,  # (tokens, WIDTH)
    multiplier_ptr,  # (rows, WIDTH), multiplier_stride apart
    shift_ptr,  # (rows, WIDTH), as far apart, or None
    row_ptr,  # (frames,) int32
    frame_ptr,  # (tokens,) int32
    tokens,
    multiplier_stride,
    y_ptr,  # (tokens, WIDTH)
    scale_ptr,  # (tokens,) fp32, or None
    EPS: tl.constexpr,
    CENTER: tl.constexpr,
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
    multiplier = multipliers(multiplier_ptr, multiplier_stride, row_ptr, frame_ptr, token, token_mask, column, mask)
    if CENTER:
        x = centered(x, mask, WIDTH)
    factor = inverse_norm(x, EPS, WIDTH)
    y = x * multiplier
    if shift_ptr is not None:
        shift = multipliers(shift_ptr, multiplier_stride, row_ptr, frame_ptr, token, token_mask, column, mask)
        y = y * factor[:, None] + shift
        factor = tl.full((ROWS,), 1.0, tl.float32)
    store_rows(y, factor, mask, y_ptr, offset, scale_ptr, token, token_mask, QUANTIZE)


def _constants(
    width: int, itemsize: int, *, eps: float, center: bool, quantize: Kind | None
) -> tuple[dict[str, Any], int]:
    """Return the constexpr arguments and the number of warps: one choice for both ways to compile."""
    rows, block, warps = row_tile("norm_modulate", width, itemsize)
    constants = {"EPS": eps, "CENTER": center, "QUANTIZE": quantize, "WIDTH": width, "ROWS": rows, "BLOCK": block}
    return constants, warps


def launch(
    x: Tensor,
    multiplier: Tensor,
    row: Tensor,
    frame: Tensor,
    y: Tensor,
    scale: Tensor | None,
    *,
    eps: float,
    center: bool,
    quantize: Kind | None,
    shift: Tensor | None = None,
) -> None:
    """Launch on checked arguments; writes all of ``y`` and, with ``quantize``, of ``scale``."""
    tokens, width = x.shape
    constants, warps = _constants(width, x.element_size(), eps=eps, center=center, quantize=quantize)
    if x.numel():
        _norm_modulate_kernel[(triton.cdiv(tokens, constants["ROWS"]),)](
            x,
            multiplier,
            shift,
            row,
            frame,
            tokens,
            multiplier.stride(0),
            y,
            scale,
            **constants,
            **options(warps),
        )


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """RMSNorm in ``dtype`` and in each format the device can convert to, and the final LayerNorm; fp32 multipliers."""
    variants: list[tuple[str, bool, Kind | None]] = [("", False, None), ("_center", True, None)]
    variants += [(f"_{kind}", False, kind) for kind in kinds(capability)]
    found = []
    for suffix, center, quantize in variants:
        eps = FINAL_EPS if center else shape.norm_eps
        constants, warps = _constants(shape.hidden, bytes_of(dtype), eps=eps, center=center, quantize=quantize)
        types = {
            "x_ptr": f"*{dtype}",
            "multiplier_ptr": "*fp32",
            "row_ptr": "*i32",
            "frame_ptr": "*i32",
            "tokens": "i32",
            "multiplier_stride": "i32",
            "y_ptr": POINTER[quantize] if quantize else f"*{dtype}",
        }
        if quantize:
            types["scale_ptr"] = "*fp32"
        divisible = ["x_ptr", "multiplier_ptr", "y_ptr"] + ["multiplier_stride"] * (shape.hidden % 16 == 0)
        name = f"norm_modulate_{dtype}_{shape.hidden}{suffix}"
        found.append(specialize(name, _norm_modulate_kernel, types, constants, warps=warps, divisible=divisible))
    return found
