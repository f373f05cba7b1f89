"""What kernels that hold whole rows in registers share: the tile's size, the norm, and the store that may quantize."""

from collections.abc import Iterable, Mapping
from typing import Any

import triton
import triton.language as tl

from framert.kernels.quantize_rows.reference import Kind
from framert.kernels.quantize_rows.rounding import quantized, row_scale
from framert.kernels.specialization import Specialization
from framert.runtime.errors import ConfigError

TILE = 2048  # values of a tile of short rows
BYTES_PER_THREAD = 64  # of a tile; half of it costs a third more instructions per row: sums and addresses per thread
MAX_WIDTH = 16384  # of a row in registers, which 512 threads share
FINAL_EPS = 1e-6  # of the LayerNorm before the last projection
POINTER = {"int8": "*i8", "fp8": "*fp8e4nv"}


def row_tile(kernel: str, width: int, itemsize: int) -> tuple[int, int, int]:
    """Return (rows, block, warps) of a tile of whole rows, ``width`` wide, padded to ``block``, a power of two.

    It depends on width and itemsize (bytes) alone, so that a token's sums are taken in the same order in every pack.
    """
    if width > MAX_WIDTH:
        raise ConfigError(
            f"{kernel}: rows of {width} values; impl='triton' holds up to {MAX_WIDTH}, use impl='reference'"
        )
    block = triton.next_power_of_2(max(width, 16))
    rows = max(1, TILE // block)
    # short rows: half the bytes per thread, which leaves their sums within a warp or two
    return rows, block, warps_for(rows * block, itemsize if rows == 1 else 4)


def warps_for(values: int, itemsize: int) -> int:
    """Return the warps for a tile of ``values``, a power of two, of ``itemsize`` bytes each."""
    return max(1, min(16, values * itemsize // (32 * BYTES_PER_THREAD)))


def bytes_of(dtype: str) -> int:
    """Return the bytes of one of "bf16", "fp16", "fp32"."""
    return 4 if dtype == "fp32" else 2


def options(warps: int) -> dict[str, Any]:
    """Return the launch options; fusing is Triton's default up to 3.9, said aloud because 3.10 changes it."""
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}


def kinds(capability: int) -> tuple[Kind, ...]:
    """Return the formats a device of this compute capability can convert to."""
    return ("int8", "fp8") if capability >= 89 else ("int8",)


def specialize(
    name: str,
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    warps: int,
    divisible: Iterable[str],
    grid: tuple[str, str, str] = ("(tokens + ROWS - 1) / ROWS", "1", "1"),
) -> Specialization:
    """Describe ``kernel`` for one set of constants; an argument without a type is constexpr, and None unless given."""
    return Specialization(
        name=name,
        kernel=kernel,
        signature={argument: types.get(argument, "constexpr") for argument in kernel.arg_names},
        constants={argument: constants.get(argument) for argument in kernel.arg_names if argument not in types},
        warps=warps,
        stages=1,
        grid=grid,
        divisible=frozenset(divisible),
    )


@triton.jit
def multipliers(multiplier_ptr, stride, row_ptr, frame_ptr, token, token_mask, column, mask):
    """Return row[frame] of each token, (rows, block) fp32, of multipliers ``stride`` apart."""
    row = tl.load(row_ptr + tl.load(frame_ptr + token, mask=token_mask, other=0), mask=token_mask, other=0)
    place = row.to(tl.int64)[:, None] * stride + column[None, :]
    # many tokens share a row: it is to stay near while they pass
    return tl.load(multiplier_ptr + place, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def inverse_norm(x, EPS: tl.constexpr, WIDTH: tl.constexpr):
    """Return 1 / sqrt(mean(x^2) + EPS) of each row of x (rows, block) fp32, zero beyond its WIDTH columns."""
    return tl.rsqrt(tl.sum(x * x, 1) / WIDTH + EPS)


@triton.jit
def centered(x, mask, WIDTH: tl.constexpr):
    """Return x (rows, block) fp32 less each row's mean over its WIDTH columns, zero beyond them."""
    return tl.where(mask, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)


@triton.jit
def largest(x):
    """Return the largest magnitude of each row of x (rows, block) fp32, NaN if one of it is.

    So a broken row gets a scale that is not finite, and never dequantizes to plausible values. The bits of
    magnitudes order as integers do, NaN last; a maximum of floats would skip it.
    """
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)


@triton.jit
def store_rows(x, factor, mask, y_ptr, offset, scale_ptr, token, token_mask, QUANTIZE: tl.constexpr):
    """Store x (rows, block) times each row's factor, both fp32, at y_ptr + offset in its dtype, or quantized.

    Quantized, the factor is the scale's alone: neither does a value need it, nor its sum the largest to wait.
    """
    if QUANTIZE is None:
        tl.store(y_ptr + offset, x * factor[:, None], mask=mask)
    else:
        scale, inverse = row_scale(largest(x), QUANTIZE)
        tl.store(y_ptr + offset, quantized(x * inverse[:, None], QUANTIZE), mask=mask)
        tl.store(scale_ptr + token, scale * factor, mask=token_mask)
