"""Norm and rotation of queries and keys in Triton: a token's heads in registers, angles looked up once for all."""

from typing import Any, Literal

import triton
import triton.language as tl
from torch import Tensor

from framert.kernels.rows import MAX_WIDTH, bytes_of, options, specialize, warps_for
from framert.kernels.specialization import ModelShape, Specialization
from framert.runtime.errors import ConfigError


@triton.jit
def _norm_and_rotate(
    x_ptr,  # (HEADS, DIM) of one token
    weight_ptr,  # (HEADS, DIM)
    bias_ptr,  # (HEADS, DIM)
    cosine,  # (DIM_BLOCK / 2,)
    sine,  # (DIM_BLOCK / 2,)
    out_ptr,  # (HEADS, DIM) of one token, may be x_ptr
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    head = tl.arange(0, HEAD_BLOCK)[:, None]
    column = tl.arange(0, DIM_BLOCK)[None, :]
    mask = (head < HEADS) & (column < DIM)
    offset = head * DIM + column
    x = tl.load(x_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    weight = tl.load(weight_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    bias = tl.load(bias_ptr + offset, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    x = tl.where(mask, x - tl.sum(x) / (HEADS * DIM), 0.0)
    x = x * tl.rsqrt(tl.sum(x * x) / (HEADS * DIM) + EPS) * weight + bias
    even, odd = tl.split(tl.reshape(x, (HEAD_BLOCK, DIM_BLOCK // 2, 2)))
    cosine, sine = cosine[None, :], sine[None, :]
    turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    tl.store(out_ptr + offset, tl.reshape(turned, (HEAD_BLOCK, DIM_BLOCK)), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _qk_norm_rope_kernel(
    qkv_ptr,  # (tokens, (HEADS + 2 * KV_HEADS) * DIM)
    q_weight_ptr,  # (HEADS * DIM,)
    q_bias_ptr,  # (HEADS * DIM,)
    k_weight_ptr,  # (KV_HEADS * DIM,)
    k_bias_ptr,  # (KV_HEADS * DIM,)
    position_ptr,  # (tokens, 3) int32
    cosine_ptr,  # (positions, DIM / 6) fp32
    sine_ptr,  # (positions, DIM / 6) fp32
    tokens,
    q_stride,
    k_stride,
    query_ptr,  # (tokens, HEADS, DIM), tokens q_stride apart
    key_ptr,  # (tokens, KV_HEADS, DIM), tokens k_stride apart
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, DIM_BLOCK // 2)
    inside = pair < DIM // 2
    position = tl.load(position_ptr + token * 3 + pair // (DIM // 6), mask=inside, other=0).to(tl.int64)
    place = position * (DIM // 6) + pair % (DIM // 6)
    cosine = tl.load(cosine_ptr + place, mask=inside, other=0.0)
    sine = tl.load(sine_ptr + place, mask=inside, other=0.0)
    qkv_ptr += token * ((HEADS + 2 * KV_HEADS) * DIM)
    _norm_and_rotate(
        qkv_ptr, q_weight_ptr, q_bias_ptr, cosine, sine, query_ptr + token * q_stride,
        EPS, HEADS, DIM, HEAD_BLOCK, DIM_BLOCK,
    )  # fmt: skip
    _norm_and_rotate(
        qkv_ptr + HEADS * DIM, k_weight_ptr, k_bias_ptr, cosine, sine, key_ptr + token * k_stride,
        EPS, KV_HEADS, DIM, KV_BLOCK, DIM_BLOCK,
    )  # fmt: skip


def _constants(heads: int, kv_heads: int, head_dim: int, itemsize: int, eps: float) -> tuple[dict[str, Any], int]:
    """Return the constexpr arguments and the number of warps: one choice for both ways to compile."""
    constants = {
        "EPS": eps,
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "DIM": head_dim,
        "HEAD_BLOCK": triton.next_power_of_2(heads),
        "KV_BLOCK": triton.next_power_of_2(kv_heads),
        "DIM_BLOCK": triton.next_power_of_2(head_dim),
    }
    values = max(constants["HEAD_BLOCK"], constants["KV_BLOCK"]) * constants["DIM_BLOCK"]
    if values > MAX_WIDTH:
        raise ConfigError(
            f"qk_norm_rope: {heads} heads of {head_dim}; impl='triton' holds up to {MAX_WIDTH} values with both counts "
            "rounded up to powers of two, use impl='reference'"
        )
    return constants, warps_for(values, itemsize)


def launch(
    qkv: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    position: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query: Tensor,
    key: Tensor,
    *,
    eps: float,
) -> None:
    """Launch on checked arguments; writes all of ``query`` and ``key`` (tokens, heads, head_dim), and nothing else."""
    tokens, heads, head_dim = query.shape
    constants, warps = _constants(heads, key.shape[1], head_dim, qkv.element_size(), eps)
    if tokens:
        _qk_norm_rope_kernel[(tokens,)](
            qkv, q_weight, q_bias, k_weight, k_bias, position, cosine, sine, tokens,
            query.stride(0), key.stride(0), query, key, **constants, **options(warps),
        )  # fmt: skip


def specializations(shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int) -> list[Specialization]:
    """One, with the norms' weights in ``dtype``; none for a head_dim that three rotary axes of pairs do not divide."""
    if shape.head_dim % 6:
        return []
    constants, warps = _constants(shape.heads, shape.kv_heads, shape.head_dim, bytes_of(dtype), shape.norm_eps)
    rows = ("qkv_ptr", "q_weight_ptr", "q_bias_ptr", "k_weight_ptr", "k_bias_ptr", "query_ptr", "key_ptr")
    types = {
        **dict.fromkeys(rows, f"*{dtype}"),
        "position_ptr": "*i32",
        "cosine_ptr": "*fp32",
        "sine_ptr": "*fp32",
        **dict.fromkeys(("tokens", "q_stride", "k_stride"), "i32"),
    }
    strides = ("q_stride", "k_stride") if shape.kv_heads * shape.head_dim % 16 == 0 else ()
    return [
        specialize(
            f"qk_norm_rope_{dtype}_{shape.heads}_{shape.kv_heads}_{shape.head_dim}",
            _qk_norm_rope_kernel,
            types,
            constants,
            warps=warps,
            divisible=(*rows, *strides),
            grid=("tokens", "1", "1"),
        )
    ]
