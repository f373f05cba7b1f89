"""Guidance and solver row in Triton: every slot read once and written once."""

from typing import Any, Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.rows import TILE, options, specialize, warps_for
from framert.kernels.specialization import ModelShape, Specialization


@triton.jit(do_not_specialize=["slots"])
def _update_kernel(
    output_ptr,  # (tokens, WIDTH)
    latents_ptr,  # (slots, WIDTH) fp32
    history_ptr,  # (slots, WIDTH) fp32
    index_ptr,  # (slots, BRANCHES) int32
    weight_ptr,  # (slots, BRANCHES) fp32
    update_ptr,  # (slots, 6) fp32
    slots,
    new_latents_ptr,  # (slots, WIDTH) fp32, may be latents_ptr
    new_history_ptr,  # (slots, WIDTH) fp32, may be history_ptr
    velocity_ptr,  # (slots, WIDTH) fp32
    BRANCHES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot_mask = slot < slots
    mask = slot_mask[:, None] & (column < WIDTH)[None, :]
    offset = slot[:, None] * WIDTH + column[None, :]
    x = tl.load(latents_ptr + offset, mask=mask, other=0.0)
    h = tl.load(history_ptr + offset, mask=mask, other=0.0)
    v = tl.zeros((ROWS, BLOCK), tl.float32)
    for branch in tl.static_range(BRANCHES):
        weight = tl.load(weight_ptr + slot * BRANCHES + branch, mask=slot_mask, other=0.0)
        token = tl.load(index_ptr + slot * BRANCHES + branch, mask=slot_mask, other=0).to(tl.int64)
        # an entry of weight 0 is not read: neither bandwidth nor another token's NaN
        read = mask & (weight != 0)[:, None]
        output = tl.load(output_ptr + token[:, None] * WIDTH + column[None, :], mask=read, other=0.0).to(tl.float32)
        v += weight[:, None] * output
    row = update_ptr + slot * 6
    a = tl.load(row, mask=slot_mask, other=0.0)[:, None]
    b = tl.load(row + 1, mask=slot_mask, other=0.0)[:, None]
    c = tl.load(row + 2, mask=slot_mask, other=0.0)[:, None]
    d = tl.load(row + 3, mask=slot_mask, other=0.0)[:, None]
    e = tl.load(row + 4, mask=slot_mask, other=0.0)[:, None]
    f = tl.load(row + 5, mask=slot_mask, other=0.0)[:, None]
    tl.store(velocity_ptr + offset, v, mask=mask)
    tl.store(new_latents_ptr + offset, a * x + b * v + c * h, mask=mask)
    tl.store(new_history_ptr + offset, d * x + e * v + f * h, mask=mask)


def _constants(width: int, branches: int) -> tuple[dict[str, Any], int]:
    """Return the constexpr arguments and the number of warps: one choice for both ways to compile."""
    block = min(triton.next_power_of_2(max(width, 16)), TILE // 2)
    rows = TILE // 2 // block
    return {"BRANCHES": branches, "WIDTH": width, "ROWS": rows, "BLOCK": block}, 2 * warps_for(rows * block, 4)


def launch(
    output: Tensor,
    latents: Tensor,
    history: Tensor,
    index: Tensor,
    weight: Tensor,
    update: Tensor,
    velocity: Tensor,
) -> None:
    """Launch on checked arguments; ``latents`` and ``history`` are read and written, all of ``velocity`` is written."""
    slots, width = latents.shape
    constants, warps = _constants(width, index.shape[1])
    if latents.numel():
        grid = (triton.cdiv(slots, constants["ROWS"]), triton.cdiv(width, constants["BLOCK"]))
        _update_kernel[grid](
            output, latents, history, index, weight, update, slots, latents, history, velocity,
            **constants, **options(warps),
        )  # fmt: skip


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """One: the model's output in ``dtype``, all else fp32."""
    constants, warps = _constants(shape.token_width, shape.guidance_branches)
    buffers = ("latents_ptr", "history_ptr", "new_latents_ptr", "new_history_ptr", "velocity_ptr")
    types = {
        "output_ptr": f"*{dtype}",
        "index_ptr": "*i32",
        "weight_ptr": "*fp32",
        "update_ptr": "*fp32",
        "slots": "i32",
        **dict.fromkeys(buffers, "*fp32"),
    }
    return [
        specialize(
            f"update_{dtype}_{shape.token_width}x{shape.guidance_branches}",
            _update_kernel,
            types,
            constants,
            warps=warps,
            divisible=("output_ptr", *buffers),
            grid=("(slots + ROWS - 1) / ROWS", "(WIDTH + BLOCK - 1) / BLOCK", "1"),
        )
    ]
