"""Frame attention in Triton: one program per (tile of a sequence's queries, head)."""

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.frame_attention.tiles import Precision, Tile, choose
from framert.kernels.specialization import ModelShape, Specialization

LOG2_E = tl.constexpr(1.4426950408889634)
SCAN = 128  # sequences whose ranges are read at once
PRECISION: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@triton.jit
def _tanh(x, HARDWARE: tl.constexpr):
    """tanh of fp32: by one instruction (relative error 2**-11), or to fp32's precision."""
    if HARDWARE:
        y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        high = tl.where(tl.abs(x) > 10.0, 10.0, tl.abs(x))  # from there on tanh is 1; not a minimum, which hides a NaN
        # odd minimax polynomial (relative error 5e-9) where 1 - 2 / (e**2x + 1) would cancel
        z = high * high
        small = -0.33333282 + z * (0.13331442 + z * (-0.05373972 + z * (0.02063909 - z * 0.00570499)))
        large = 1.0 - 2.0 / (tl.exp2(high * (2 * LOG2_E)) + 1.0)
        y = tl.where(high < 0.625, x + x * z * small, tl.where(x < 0, -large, large))
    return y


@triton.jit
def _dot(a, b, sum_, INTERPRETED: tl.constexpr):
    """Return ``a @ b + sum_`` in fp32."""
    if INTERPRETED:  # the interpreter takes bf16's bits for integers; in fp32 the products are as exact
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum_, input_precision="ieee")


@triton.jit
def _load(base, stride, left, ROWS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr,
          HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Load (ROWS, WIDTH) from column FIRST on; rows from ``left`` on (if MASKED) and columns past HEAD_DIM are 0."""
    row = tl.arange(0, ROWS)[:, None]
    column = FIRST + tl.arange(0, WIDTH)[None, :]
    offset = row * stride + column
    if MASKED:
        if FIRST + WIDTH > HEAD_DIM:
            tile = tl.load(base + offset, mask=(row < left) & (column < HEAD_DIM), other=0.0)
        else:
            tile = tl.load(base + offset, mask=row < left, other=0.0)
    elif FIRST + WIDTH > HEAD_DIM:
        tile = tl.load(base + offset, mask=column < HEAD_DIM, other=0.0)
    else:
        tile = tl.load(base + offset)
    return tile


@triton.jit
def _output(out_ptr, begin, out_stride, left, ROWS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr,
            HEAD_DIM: tl.constexpr):  # fmt: skip
    """Return the addresses, and which of them exist, of ``left`` rows from ``begin`` on, columns from FIRST on."""
    row = tl.arange(0, ROWS)[:, None]
    column = FIRST + tl.arange(0, WIDTH)[None, :]
    return out_ptr + (begin + row).to(tl.int64) * out_stride + column, (row < left) & (column < HEAD_DIM)


@triton.jit
def _accumulate(
    query, query_rest, sum_, sum_rest, total, peak,
    key_ptr, value_ptr, key_stride, value_stride, begin, end, length,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDED: tl.constexpr, HARDWARE_TANH: tl.constexpr,
    INTERPRETED: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add keys begin..end of ``length`` to the running softmax: weighted values, their total weight, the peak logit."""
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        key = key_ptr + tl.cast(start, tl.int64) * key_stride
        value = value_ptr + tl.cast(start, tl.int64) * value_stride
        left = length - start
        k = _load(key, key_stride, left, KEYS, 0, WIDTH, HEAD_DIM, MASKED)
        logits = _dot(query, tl.trans(k), tl.zeros((query.shape[0], KEYS), tl.float32), INTERPRETED)
        if REST > 0:
            k_rest = _load(key, key_stride, left, KEYS, WIDTH, REST, HEAD_DIM, MASKED)
            logits = _dot(query_rest, tl.trans(k_rest), logits, INTERPRETED)
        valid = tl.arange(0, KEYS)[None, :] < left
        FACTOR: tl.constexpr = (SOFTCAP if SOFTCAP > 0 else SCALE) * LOG2_E  # exponents are of 2
        if SOFTCAP > 0:
            logits = _tanh(logits * (SCALE / SOFTCAP), HARDWARE_TANH)
        if BOUNDED:
            weight = tl.exp2(logits * FACTOR)
            if MASKED:
                weight = tl.where(valid, weight, 0.0)
        else:
            if MASKED:
                logits = tl.where(valid, logits, float("-inf"))
            higher = tl.maximum(peak, tl.max(logits, 1) * FACTOR)
            weight = tl.exp2(logits * FACTOR - higher[:, None])
            decay = tl.exp2(peak - higher)
            peak = higher
            total = total * decay
            sum_ = sum_ * decay[:, None]
            if REST > 0:
                sum_rest = sum_rest * decay[:, None]
        total += tl.sum(weight, 1)
        v = _load(value, value_stride, left, KEYS, 0, WIDTH, HEAD_DIM, MASKED)
        sum_ = _dot(weight.to(v.dtype), v, sum_, INTERPRETED)
        if REST > 0:
            v_rest = _load(value, value_stride, left, KEYS, WIDTH, REST, HEAD_DIM, MASKED)
            sum_rest = _dot(weight.to(v.dtype), v_rest, sum_rest, INTERPRETED)
    return sum_, sum_rest, total, peak


@triton.jit
def _attend(
    query, query_rest, key_ptr, value_ptr, key_stride, value_stride, length,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDED: tl.constexpr, HARDWARE_TANH: tl.constexpr,
    INTERPRETED: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Return the two pieces, fp32, of attention to ``length`` keys; zero for none. LONG: whole tiles need no masks."""
    sum_ = tl.zeros((TILE, WIDTH), tl.float32)
    sum_rest = 0.0
    if REST > 0:
        sum_rest = tl.zeros((TILE, REST), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    peak = tl.full((TILE,), float("-inf"), tl.float32)
    whole = 0
    if LONG:
        whole = length // KEYS * KEYS
        sum_, sum_rest, total, peak = _accumulate(
            query, query_rest, sum_, sum_rest, total, peak, key_ptr, value_ptr, key_stride, value_stride,
            0, whole, length,
            SCALE, SOFTCAP, BOUNDED, HARDWARE_TANH, INTERPRETED, HEAD_DIM, WIDTH, REST, KEYS, STAGES, False,
        )  # fmt: skip
    sum_, sum_rest, total, peak = _accumulate(
        query, query_rest, sum_, sum_rest, total, peak, key_ptr, value_ptr, key_stride, value_stride,
        whole, length, length,
        SCALE, SOFTCAP, BOUNDED, HARDWARE_TANH, INTERPRETED, HEAD_DIM, WIDTH, REST, KEYS, 1 if LONG else STAGES, True,
    )  # fmt: skip
    share = 1.0 / tl.where(total == 0, 1.0, total)
    if REST > 0:
        sum_rest = sum_rest * share[:, None]
    return sum_ * share[:, None], sum_rest


@triton.jit
def _find_tile(q_range_ptr, sequences, TILE: tl.constexpr, SCAN: tl.constexpr):
    """Return this program's sequence, its first row there, and how many tiles all sequences have."""
    program = tl.program_id(0)
    sequence, first, tiles = 0, 0, 0
    for begin in range(0, sequences, SCAN):
        index = begin + tl.arange(0, SCAN)
        length = tl.load(q_range_ptr + 2 * index + 1, mask=index < sequences, other=0)
        count = (length + TILE - 1) // TILE
        end = tiles + tl.cumsum(count, 0)
        passed = (end <= program) & (index < sequences)
        sequence += tl.sum(passed.to(tl.int32), 0)
        first = tl.maximum(first, tl.max(tl.where(passed, end, 0), 0))
        tiles += tl.sum(count, 0)
    return sequence, (program - first) * TILE, tiles


@triton.jit
def _zero_gap(gap, out_ptr, out_stride, q_range_ptr, tokens, sequences,
              HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SCAN: tl.constexpr):  # fmt: skip
    """Zero the tokens between the end of sequence ``gap - 1`` (0 for gap 0) and the next sequence's begin."""
    begin = 0
    if gap > 0:
        length = tl.load(q_range_ptr + 2 * gap - 1)
        begin = tl.where(length > 0, tl.load(q_range_ptr + 2 * gap - 2) + length, tokens)
    end = tokens
    for first in range(0, sequences, SCAN):
        index = first + tl.arange(0, SCAN)
        other = tl.load(q_range_ptr + 2 * index, mask=index < sequences, other=0)
        length = tl.load(q_range_ptr + 2 * index + 1, mask=index < sequences, other=0)
        end = tl.minimum(end, tl.min(tl.where((length > 0) & (other >= begin), other, tokens), 0))
    for row in range(begin, end, 16):
        address, exists = _output(out_ptr, row, out_stride, end - row, 16, 0, WIDTH, HEAD_DIM)
        tl.store(address, 0.0, mask=exists)
        if REST > 0:
            address, exists = _output(out_ptr, row, out_stride, end - row, 16, WIDTH, REST, HEAD_DIM)
            tl.store(address, 0.0, mask=exists)


@triton.jit(do_not_specialize=["tokens", "sequences"])
def _frame_attention_kernel(
    query_ptr,  # (tokens, HEADS, HEAD_DIM), rows query_stride apart
    key_ptr,  # (kv tokens, KV_HEADS, HEAD_DIM), rows key_stride apart
    value_ptr,  # as key_ptr, rows value_stride apart
    q_range_ptr,  # (sequences, 2) int32: begin, length
    kv_range_ptr,  # (sequences, 2) int32
    text_k_ptr,  # (capacity, KV_HEADS, HEAD_DIM), rows text_k_stride apart
    text_v_ptr,  # as text_k_ptr, rows text_v_stride apart
    text_range_ptr,  # (sequences, 2) int32
    gate_ptr,  # (HEADS,)
    tokens,
    sequences,
    query_stride,
    key_stride,
    value_stride,
    text_k_stride,
    text_v_stride,
    out_stride,
    out_ptr,  # (tokens, HEADS, HEAD_DIM), rows out_stride apart
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    HARDWARE_TANH: tl.constexpr,
    INTERPRETED: tl.constexpr,
    TEXT: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    SCAN: tl.constexpr,
):
    head = tl.program_id(1)
    out_ptr += head * HEAD_DIM
    sequence, row, tiles = _find_tile(q_range_ptr, sequences, TILE, SCAN)
    if sequence == sequences:
        gap = tl.program_id(0) - tiles
        if gap <= sequences:
            _zero_gap(gap, out_ptr, out_stride, q_range_ptr, tokens, sequences, HEAD_DIM, WIDTH, REST, SCAN)
        return

    begin = tl.load(q_range_ptr + 2 * sequence) + row
    left = tl.load(q_range_ptr + 2 * sequence + 1) - row
    query_ptr += begin.to(tl.int64) * query_stride + head * HEAD_DIM
    query = _load(query_ptr, query_stride, left, TILE, 0, WIDTH, HEAD_DIM, True)
    query_rest = 0.0
    if REST > 0:
        query_rest = _load(query_ptr, query_stride, left, TILE, WIDTH, REST, HEAD_DIM, True)

    if TEXT:
        text, length = tl.load(text_range_ptr + 2 * sequence), tl.load(text_range_ptr + 2 * sequence + 1)
        text_head = (head % KV_HEADS) * HEAD_DIM
        attended, attended_rest = _attend(
            query, query_rest,
            text_k_ptr + text.to(tl.int64) * text_k_stride + text_head,
            text_v_ptr + text.to(tl.int64) * text_v_stride + text_head,
            text_k_stride, text_v_stride, length,
            SCALE, 0.0, False, False, INTERPRETED, HEAD_DIM, TILE, WIDTH, REST, KEYS, STAGES, False,
        )  # fmt: skip
        # parked in the output tile: two sums at once would not fit the registers
        gate = tl.load(gate_ptr + head).to(tl.float32)
        address, exists = _output(out_ptr, begin, out_stride, left, TILE, 0, WIDTH, HEAD_DIM)
        tl.store(address, attended * gate, mask=exists)
        if REST > 0:
            address, exists = _output(out_ptr, begin, out_stride, left, TILE, WIDTH, REST, HEAD_DIM)
            tl.store(address, attended_rest * gate, mask=exists)
        tl.debug_barrier()  # another thread may read what this one wrote

    first, length = tl.load(kv_range_ptr + 2 * sequence), tl.load(kv_range_ptr + 2 * sequence + 1)
    kv_head = (head // (HEADS // KV_HEADS)) * HEAD_DIM
    attended, attended_rest = _attend(
        query, query_rest,
        key_ptr + first.to(tl.int64) * key_stride + kv_head,
        value_ptr + first.to(tl.int64) * value_stride + kv_head,
        key_stride, value_stride, length,
        SCALE, SOFTCAP, BOUNDED, HARDWARE_TANH, INTERPRETED, HEAD_DIM, TILE, WIDTH, REST, KEYS, STAGES, True,
    )  # fmt: skip
    # Loaded again, so that the addresses are computed here: kept over the loop they would cost registers.
    begin = tl.load(q_range_ptr + 2 * sequence) + row
    left = tl.load(q_range_ptr + 2 * sequence + 1) - row
    address, exists = _output(out_ptr, begin, out_stride, left, TILE, 0, WIDTH, HEAD_DIM)
    if TEXT:
        attended += tl.load(address, mask=exists, other=0.0)
    tl.store(address, attended, mask=exists)
    if REST > 0:
        address, exists = _output(out_ptr, begin, out_stride, left, TILE, WIDTH, REST, HEAD_DIM)
        if TEXT:
            attended_rest += tl.load(address, mask=exists, other=0.0)
        tl.store(address, attended_rest, mask=exists)


def _constants(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: Precision,
    tile: Tile,
    *,
    softcap: float,
    scale: float,
    text: bool,
    device: Literal["nvidia", "other", "interpreter"] = "nvidia",
) -> dict[str, Any]:
    """Return the values of the kernel's constexpr arguments."""
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": tile.width,
        "REST": tile.rest,
        "SCALE": float(scale),
        "SOFTCAP": float(softcap),
        # Logits within the softcap need no running maximum: e**60 times a long sequence is far below the largest
        # bf16 or fp32. fp16 weights need one, and so does a softcap that large.
        "BOUNDED": 0 < softcap <= 60 and dtype != "fp16",
        "HARDWARE_TANH": device == "nvidia" and dtype != "fp32",
        "INTERPRETED": device == "interpreter",
        "TEXT": text,
        "TILE": tile.queries,
        "KEYS": tile.keys,
        "STAGES": tile.stages,
        "SCAN": SCAN,
    }


def frame_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_range: Tensor,
    kv_range: Tensor,
    text: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    out: Tensor,
    *,
    softcap: float,
    scale: float,
    query_tile: int | None = None,
) -> None:
    """Launch on checked arguments. text: keys, values, ranges, gate."""
    tokens, heads, head_dim = query.shape
    if not out.numel():
        return
    capability = 80  # the interpreter's
    if query.is_cuda:
        major, minor = torch.cuda.get_device_capability(query.device)
        capability = 10 * major + minor
    dtype = PRECISION[query.dtype]
    tile = choose(head_dim, dtype, capability, query_tile)
    sequences = q_range.shape[0]
    text_k, text_v, text_range, gate = text or (None, None, None, None)
    grid = ((tokens + sequences * (tile.queries - 1)) // tile.queries + sequences + 1, heads)
    constants = _constants(
        heads, key.shape[1], head_dim, dtype, tile, softcap=softcap, scale=scale, text=text is not None,
        device="interpreter" if not query.is_cuda else "other" if torch.version.hip else "nvidia",
    )  # fmt: skip
    _frame_attention_kernel[grid](
        query, key, value, q_range, kv_range, text_k, text_v, text_range, gate, tokens, sequences,
        query.stride(0), key.stride(0), value.stride(0),
        0 if text_k is None else text_k.stride(0), 0 if text_v is None else text_v.stride(0), out.stride(0), out,
        **constants, num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def specializations(shape: ModelShape, dtype: Precision, capability: int, *, text: bool = True) -> list[Specialization]:
    """Return the kernel of a model for each size of query tile its target has; ``text``: with text attention."""
    aligned = shape.kv_heads * shape.head_dim % 16 == 0 and shape.heads * shape.head_dim % 16 == 0
    names = _frame_attention_kernel.arg_names
    found = {}
    for query_tile in (64, 128):
        tile = choose(shape.head_dim, dtype, capability, query_tile)
        constants = _constants(
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            dtype,
            tile,
            softcap=shape.softcap,
            scale=shape.head_dim**-0.5,
            text=text,
        )
        if not text:
            constants |= dict.fromkeys(("text_k_ptr", "text_v_ptr", "text_range_ptr", "gate_ptr"))
        types = {name: f"*{dtype}" if name.endswith("_ptr") else "i32" for name in names}
        types |= {name: "*i32" for name in names if name.endswith("_range_ptr")}
        types |= {"gate_ptr": "*fp32"} | dict.fromkeys(constants, "constexpr")
        dense = {name for name in names if name.endswith("_stride") or types[name] == f"*{dtype}"}
        found[tile] = Specialization(
            name=f"frame_attention_{dtype}_d{shape.head_dim}_q{tile.queries}" + ("" if text else "_no_text"),
            kernel=_frame_attention_kernel,
            signature=types,
            constants=constants,
            warps=tile.warps,
            stages=tile.stages,
            grid=("(tokens + sequences * (TILE - 1)) / TILE + sequences + 1", "HEADS", "1"),
            divisible=frozenset(dense if aligned else ()),
        )
    return list(found.values())
