"""SwiGLU in Triton: pieces of rows where nothing spans a row, whole rows in registers where a scale does."""

from typing import Any, Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.quantize_rows.reference import Kind
from framert.kernels.quantize_rows.rounding import quantized, row_scale
from framert.kernels.rows import MAX_WIDTH, POINTER, TILE, bytes_of, kinds, largest, options, specialize, warps_for
from framert.kernels.specialization import ModelShape, Specialization
from framert.runtime.errors import ConfigError


@triton.jit
def _piece(gate_up_ptr, token, token_mask, column, WIDTH: tl.constexpr):
    """Return silu(gate) * up of some columns, (rows, block) fp32; zero beyond the tokens and the width."""
    mask = token_mask[:, None] & (column < WIDTH)[None, :]
    place = gate_up_ptr + token[:, None] * (2 * WIDTH) + column[None, :]
    gate = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    up = tl.load(place + WIDTH, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _store(y, y_ptr, token, token_mask, column, WIDTH: tl.constexpr):
    mask = token_mask[:, None] & (column < WIDTH)[None, :]
    tl.store(y_ptr + token[:, None] * WIDTH + column[None, :], y, mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _swiglu_kernel(
    gate_up_ptr,  # (tokens, 2 * WIDTH)
    tokens,
    y_ptr,  # (tokens, WIDTH)
    scale_ptr,  # (tokens,) fp32, or None
    QUANTIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,  # columns after the first BLOCK of a row, to a power of two; 0 where BLOCK covers it
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token_mask = token < tokens
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = _piece(gate_up_ptr, token, token_mask, column, WIDTH)
    if QUANTIZE is None:
        _store(y, y_ptr, token, token_mask, column, WIDTH)
    else:
        top = largest(y)
        if TAIL:
            tail_column = BLOCK + tl.arange(0, TAIL)
            tail = _piece(gate_up_ptr, token, token_mask, tail_column, WIDTH)
            top = tl.maximum(top, largest(tail), propagate_nan=tl.PropagateNan.ALL)
        scale, inverse = row_scale(top, QUANTIZE)
        _store(quantized(y * inverse[:, None], QUANTIZE), y_ptr, token, token_mask, column, WIDTH)
        if TAIL:
            _store(quantized(tail * inverse[:, None], QUANTIZE), y_ptr, token, token_mask, tail_column, WIDTH)
        tl.store(scale_ptr + token, scale, mask=token_mask)


def _constants(width: int, itemsize: int, quantize: Kind | None) -> tuple[dict[str, Any], int, int]:
    """Return the constexpr arguments, the warps and the pieces of a row: one choice for both ways to compile."""
    tail = 0
    if quantize is None:
        # the power of two that divides the width, within bounds: no idle lanes for widths such as 5 * 2048
        block = max(256, min(TILE, width & -width))
    elif width > MAX_WIDTH:
        raise ConfigError(
            f"swiglu: rows of {width} values; impl='triton' quantizes up to {MAX_WIDTH}, use impl='reference'"
        )
    else:
        block = triton.next_power_of_2(max(width, 16))
        rest = width - block // 2
        if block > TILE and triton.next_power_of_2(rest) < block // 2:  # 10240 as 8192 + 2048, not 16384
            block, tail = block // 2, triton.next_power_of_2(rest)
    rows = max(1, TILE // block)
    constants = {"QUANTIZE": quantize, "WIDTH": width, "ROWS": rows, "BLOCK": block, "TAIL": tail}
    return constants, warps_for(rows * block, itemsize), 1 if quantize else triton.cdiv(width, block)


def launch(gate_up: Tensor, y: Tensor, scale: Tensor | None, *, quantize: Kind | None) -> None:
    """Launch on checked arguments; writes all of ``y`` and, with ``quantize``, of ``scale``."""
    tokens, width = y.shape
    constants, warps, pieces = _constants(width, gate_up.element_size(), quantize)
    if y.numel():
        _swiglu_kernel[(triton.cdiv(tokens, constants["ROWS"]), pieces)](
            gate_up, tokens, y, scale, **constants, **options(warps)
        )


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """In ``dtype`` and in each format the device can convert to."""
    found = []
    for quantize in (None, *kinds(capability)):
        constants, warps, pieces = _constants(shape.ffn, bytes_of(dtype), quantize)
        types = {
            "gate_up_ptr": f"*{dtype}",
            "tokens": "i32",
            "y_ptr": POINTER[quantize] if quantize else f"*{dtype}",
        }
        if quantize:
            types["scale_ptr"] = "*fp32"
        found.append(
            specialize(
                f"swiglu_{dtype}_{shape.ffn}" + (f"_{quantize}" if quantize else ""),
                _swiglu_kernel,
                types,
                constants,
                warps=warps,
                divisible=("gate_up_ptr", "y_ptr"),
                grid=("(tokens + ROWS - 1) / ROWS", str(pieces), "1"),
            )
        )
    return found
