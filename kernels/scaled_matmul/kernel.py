"""Scaled matrix product of 8-bit operands in Triton: int8 or fp8-e4m3, a scale per row of each operand."""

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.specialization import ModelShape, Specialization

GROUP_M = 8  # row tiles that share the tiles of b while these lie in the L2 cache
# Hopper's tensor cores sum fp8 products with about 14 bits: after this many, sums move to fp32 registers.
EXACT_SUM = 128


@triton.jit
def _scaled_matmul_kernel(
    a_ptr,  # (m, k) int8 or fp8
    b_ptr,  # (n, k), type of a
    a_scale_ptr,  # (m,) fp32
    b_scale_ptr,  # (n,) fp32
    bias_ptr,  # (n,) any float type; not read unless HAS_BIAS
    out_ptr,  # (m, n)
    m,
    n,
    k,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EXACT_SUM: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP_M * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    rows = (group * GROUP_M + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    # Rows beyond the end read the last one and are not stored: loads without a mask.
    a_row = tl.minimum(rows, m - 1).to(tl.int64) * k
    b_row = tl.minimum(columns, n - 1).to(tl.int64) * k
    a_tile = a_ptr + a_row[:, None] + steps[None, :]
    b_tile = b_ptr + b_row[:, None] + steps[None, :]

    INTEGER: tl.constexpr = a_ptr.dtype.element_ty == tl.int8
    ZERO: tl.constexpr = 0 if INTEGER else 0.0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
    for begin in range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_tile)
            b = tl.load(b_tile)
        else:
            inside = steps[None, :] < k - begin
            a = tl.load(a_tile, mask=inside, other=ZERO)
            b = tl.load(b_tile, mask=inside, other=ZERO)
        if INTEGER:
            total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
        else:
            total = tl.dot(a, tl.trans(b), total, max_num_imprecise_acc=EXACT_SUM)
        a_tile += BLOCK_K
        b_tile += BLOCK_K

    a_scale = tl.load(a_scale_ptr + rows, mask=rows < m, other=0.0)
    b_scale = tl.load(b_scale_ptr + columns, mask=columns < n, other=0.0)
    result = total.to(tl.float32) * a_scale[:, None] * b_scale[None, :]
    if HAS_BIAS:
        result += tl.load(bias_ptr + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    out = out_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's part of the result, and how it is computed."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def tile(m: int) -> Tile:
    """Return the tile for ``m`` rows: one for up to 64 and one for more.

    Both add products along k in the same order. Four stages of the larger keep three tiles of each operand in shared
    memory, 96 KiB, which every target has (four, 128 KiB, on sm_90 and sm_100, which have 227).
    """
    return Tile(64, 64, 128, 4, 4) if m <= 64 else Tile(128, 128, 128, 8, 4)


def scaled_matmul(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Launch on checked arguments, all contiguous."""
    (m, k), n = a.shape, b.shape[0]
    if not m or not n:
        return
    chosen = tile(m)
    grid = (triton.cdiv(m, chosen.m) * triton.cdiv(n, chosen.n),)
    _scaled_matmul_kernel[grid](
        a,
        b,
        a_scale,
        b_scale,
        b_scale if bias is None else bias,
        out,
        m,
        n,
        k,
        HAS_BIAS=bias is not None,
        EVEN_K=k % chosen.k == 0,
        BLOCK_M=chosen.m,
        BLOCK_N=chosen.n,
        BLOCK_K=chosen.k,
        GROUP_M=GROUP_M,
        EXACT_SUM=EXACT_SUM,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        enable_fp_fusion=True,  # Triton's default up to 3.9, said aloud because 3.10 changes it
    )


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """Both tiles of each kind the device can multiply; one kernel serves every product of the denoiser."""
    found = []
    for kind, element in (("int8", "i8"), ("fp8", "fp8e4nv")):
        if kind == "fp8" and capability < 89:
            continue
        for rows in (64, 128):
            chosen = tile(rows)
            constants = {
                "HAS_BIAS": False,
                "EVEN_K": shape.hidden % chosen.k == 0 and shape.ffn % chosen.k == 0,
                "BLOCK_M": chosen.m,
                "BLOCK_N": chosen.n,
                "BLOCK_K": chosen.k,
                "GROUP_M": GROUP_M,
                "EXACT_SUM": EXACT_SUM,
            }
            pointers = {
                "a_ptr": f"*{element}",
                "b_ptr": f"*{element}",
                "a_scale_ptr": "*fp32",
                "b_scale_ptr": "*fp32",
                "bias_ptr": "*fp32",
                "out_ptr": f"*{dtype}",
            }
            found.append(
                Specialization(
                    name=f"scaled_matmul_{kind}_{dtype}_m{rows}",
                    kernel=_scaled_matmul_kernel,
                    signature={**pointers, "m": "i32", "n": "i32", "k": "i32", **dict.fromkeys(constants, "constexpr")},
                    constants=constants,
                    warps=chosen.warps,
                    stages=chosen.stages,
                    grid=("((m + BLOCK_M - 1) / BLOCK_M) * ((n + BLOCK_N - 1) / BLOCK_N)", "1", "1"),
                    divisible=frozenset({*pointers, "n", "k"}),
                )
            )
    return found
