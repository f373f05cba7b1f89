"""Product of half-precision activations with four-bit weights in Triton."""

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.specialization import ModelShape, Specialization
from framert.kernels.weight_only_matmul.packing import GROUPS

GROUP_M = 8  # row tiles that share the tiles of weights while these lie in the L2 cache


@triton.jit
def _steps(nibbles, dtype: tl.constexpr):
    """Return nibbles, 0..15 in int32, as -8..7 in ``dtype``: exactly, and without an integer conversion."""
    return ((nibbles | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0).to(dtype)  # 2**23 + 8


@triton.jit
def _weight_only_matmul_kernel(
    a_ptr,  # (m, k) fp16 or bf16
    packed_ptr,  # (n, groups * GROUP / 2) uint8
    scale_ptr,  # (n, groups) fp16, bf16 or fp32
    out_ptr,  # (m, n)
    m,
    n,
    k,
    EVEN_K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    HALF: tl.constexpr = GROUP // 2
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    band = program // (GROUP_M * tiles_n)
    height = tl.minimum(tiles_m - band * GROUP_M, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    rows = (band * GROUP_M + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, HALF)
    groups = tl.cdiv(k, GROUP)
    # Rows beyond the end read the last one and are not stored: loads without a mask.
    a_tile = a_ptr + tl.minimum(rows, m - 1).to(tl.int64)[:, None] * k + steps[None, :]
    column = tl.minimum(columns, n - 1).to(tl.int64)
    packed_tile = packed_ptr + column[:, None] * (groups * HALF) + steps[None, :]
    scale_column = scale_ptr + column * groups

    # The transposed product: weights, made in registers, are the first operand, as tensor cores take it from there.
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for group in range(groups):
        packed = tl.load(packed_tile).to(tl.int32)
        if EVEN_K:
            low = tl.load(a_tile)
            high = tl.load(a_tile + HALF)
        else:
            rest = k - group * GROUP
            low = tl.load(a_tile, mask=steps[None, :] < rest, other=0.0)
            high = tl.load(a_tile + HALF, mask=steps[None, :] < rest - HALF, other=0.0)
        if INTERPRETED:  # whose products know no bf16
            low, high = low.to(tl.float32), high.to(tl.float32)
        part = tl.dot(_steps(packed & 15, low.dtype), tl.trans(low))
        part = tl.dot(_steps(packed >> 4, low.dtype), tl.trans(high), part)
        # Scaling sums, not weights, rounds nothing.
        total += part * tl.load(scale_column + group).to(tl.float32)[:, None]
        a_tile += GROUP
        packed_tile += HALF

    out = out_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
    result = tl.trans(total).to(out_ptr.dtype.element_ty)
    tl.store(out, result, mask=(rows < m)[:, None] & (columns < n)[None, :])


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's part of the result, and how it is computed."""

    m: int
    n: int
    warps: int
    stages: int


def tile(m: int) -> Tile:
    """Return the tile for ``m`` rows: one for up to 64 and one for more. Both add along k in the same order.

    Eight warps for the smaller, too: with four, groups of 128 spill on sm_120.
    """
    return Tile(64, 64, 8, 3) if m <= 64 else Tile(128, 128, 8, 3)


def weight_only_matmul(a: Tensor, packed: Tensor, scale: Tensor, out: Tensor, group: int) -> None:
    """Launch on checked arguments, all contiguous."""
    (m, k), n = a.shape, packed.shape[0]
    if not m:
        return
    chosen = tile(m)
    _weight_only_matmul_kernel[(triton.cdiv(m, chosen.m) * triton.cdiv(n, chosen.n),)](
        a,
        packed,
        scale,
        out,
        m,
        n,
        k,
        EVEN_K=k % group == 0,
        GROUP=group,
        BLOCK_M=chosen.m,
        BLOCK_N=chosen.n,
        GROUP_M=GROUP_M,
        INTERPRETED=not a.is_cuda,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        enable_fp_fusion=True,  # Triton's default up to 3.9, said aloud because 3.10 changes it
    )


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """Every tile for both groups; one kernel serves every product of the denoiser. There are none for fp32."""
    found = []
    for group in GROUPS if dtype != "fp32" else ():
        for rows in (64, 128):
            chosen = tile(rows)
            constants = {
                "EVEN_K": shape.hidden % group == 0 and shape.ffn % group == 0,
                "GROUP": group,
                "BLOCK_M": chosen.m,
                "BLOCK_N": chosen.n,
                "GROUP_M": GROUP_M,
                "INTERPRETED": False,
            }
            pointers = {
                "a_ptr": f"*{dtype}",
                "packed_ptr": "*u8",
                "scale_ptr": f"*{dtype}",
                "out_ptr": f"*{dtype}",
            }
            found.append(
                Specialization(
                    name=f"weight_only_matmul_g{group}_{dtype}_m{rows}",
                    kernel=_weight_only_matmul_kernel,
                    signature={**pointers, "m": "i32", "n": "i32", "k": "i32", **dict.fromkeys(constants, "constexpr")},
                    constants=constants,
                    warps=chosen.warps,
                    stages=chosen.stages,
                    grid=("((m + BLOCK_M - 1) / BLOCK_M) * ((n + BLOCK_N - 1) / BLOCK_N)", "1", "1"),
                    divisible=frozenset({*pointers, "n", "k"}),
                )
            )
    return found
