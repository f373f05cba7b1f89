"""Symmetric quantization per row in Triton: one program per row."""

from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.quantize_rows.rounding import quantized, row_scale
from framert.kernels.specialization import ModelShape, Specialization

MAX_BLOCK = 16384  # widest row that is held in registers; wider ones are read twice


@triton.jit
def _magnitude(x):
    """Return |x|, infinity for what is not a number: a broken row has an infinite scale, never a plausible one."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # (rows, width), rows x_stride apart
    q_ptr,  # (rows, width)
    scale_ptr,  # (rows,) fp32
    rows,  # the launch grid, for launchers that know a kernel by its arguments alone
    width,
    x_stride,
    QUANTIZE: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    x_ptr += row * x_stride
    q_ptr += row * width
    if ONE_PASS:
        x = tl.load(x_ptr + column, mask=column < width, other=0.0).to(tl.float32)
        scale, inverse = row_scale(tl.max(_magnitude(x), 0), QUANTIZE)
        tl.store(q_ptr + column, quantized(x * inverse, QUANTIZE), mask=column < width)
    else:
        largest = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, width, BLOCK):
            x = tl.load(x_ptr + begin + column, mask=begin + column < width, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, _magnitude(x))
        scale, inverse = row_scale(tl.max(largest, 0), QUANTIZE)
        for begin in range(0, width, BLOCK):
            x = tl.load(x_ptr + begin + column, mask=begin + column < width, other=0.0).to(tl.float32)
            tl.store(q_ptr + begin + column, quantized(x * inverse, QUANTIZE), mask=begin + column < width)
    tl.store(scale_ptr + row, scale)


def _launch(width: int) -> tuple[int, int]:
    """Return (BLOCK, warps) for rows of ``width``: about 16 values per thread."""
    block = min(triton.next_power_of_2(max(width, 32)), MAX_BLOCK)
    return block, max(1, min(16, block // 512))


def quantize_rows(x: Tensor, q: Tensor, scale: Tensor, kind: Literal["int8", "fp8"]) -> None:
    """Launch on checked arguments: x (rows, width) any row stride, q contiguous, scale (rows,) fp32."""
    rows, width = x.shape
    if not rows:
        return
    block, warps = _launch(width)
    _quantize_rows_kernel[(rows,)](
        x,
        q,
        scale,
        rows,
        width,
        x.stride(0),
        QUANTIZE=kind,
        ONE_PASS=width <= block,
        BLOCK=block,
        num_warps=warps,
        num_stages=1,
        enable_fp_fusion=True,  # Triton's default up to 3.9, said aloud because 3.10 changes it
    )


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """Rows of the hidden width and of the feed-forward width, for each kind the device can multiply."""
    kinds = ("int8", "fp8") if capability >= 89 else ("int8",)
    found = []
    for kind in kinds:
        for width in sorted({shape.hidden, shape.ffn}):
            block, warps = _launch(width)
            found.append(
                Specialization(
                    name=f"quantize_rows_{kind}_{dtype}_{width}",
                    kernel=_quantize_rows_kernel,
                    signature={
                        "x_ptr": f"*{dtype}",
                        "q_ptr": "*i8" if kind == "int8" else "*fp8e4nv",
                        "scale_ptr": "*fp32",
                        "rows": "i32",
                        "width": "i32",
                        "x_stride": "i32",
                        "QUANTIZE": "constexpr",
                        "ONE_PASS": "constexpr",
                        "BLOCK": "constexpr",
                    },
                    constants={"QUANTIZE": kind, "ONE_PASS": width <= block, "BLOCK": block},
                    warps=warps,
                    stages=1,
                    grid=("rows", "1", "1"),
                    divisible=frozenset({"x_ptr", "q_ptr", "scale_ptr", "width", "x_stride"}),
                )
            )
    return found
