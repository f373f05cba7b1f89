"""One step of the model over packed tokens: products with weights, and framert's kernels between them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from framert.kernels.dispatch import Impl
from framert.kernels.frame_attention.api import frame_attention
from framert.kernels.gated_residual.api import gated_residual
from framert.kernels.norm_modulate.api import norm_modulate
from framert.kernels.qk_norm_rope.api import qk_norm_rope
from framert.kernels.quantize_rows.api import quantize_rows
from framert.kernels.swiglu.api import swiglu
from framert.runtime.backends.triton.weights import Activation, Layer, StepWeights

SHORT = 2048  # tokens of a bucket up to which attention takes small tiles: 64 rows win at 1024, 128 at 4096 (H200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arenas:
    """What requests keep on the device between steps.

    text_k, text_v: (depth, capacity, kv_heads, head_dim). modulation: (rows, 4 * depth + 1, hidden).
    cache_k, cache_v: (depth, capacity, kv_heads, head_dim), keys and values of requests that reuse those of their
    condition frames; empty where none does.
    """

    text_k: Tensor
    text_v: Tensor
    modulation: Tensor
    cache_k: Tensor
    cache_v: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTables:
    """The tables of a pack on the device, see runtime.tables; kv_index is None where keys are read where they fall."""

    source: Tensor
    position: Tensor
    frame: Tensor
    row: Tensor
    q_range: Tensor
    kv_range: Tensor
    text_range: Tensor
    kv_index: Tensor | None


def velocity_of_tokens(
    weights: StepWeights, arenas: Arenas, tables: TokenTables, latents: Tensor, residual: torch.dtype, impl: Impl
) -> Tensor:
    """Return the model's output for every token, (tokens, token_width) fp32.

    Args:
        latents: (slots, token_width) fp32.
        residual: dtype of the residual stream.
    """
    row, frame, modulation = tables.row, tables.frame, arenas.modulation
    x = functional.linear(latents.index_select(0, tables.source), weights.embed, weights.embed_bias).to(residual)
    first = norm_modulate(x, modulation[:, 0], row, frame, eps=weights.norm_eps, quantize=weights.quantize, impl=impl)
    entering: Activation = first if isinstance(first, tuple) else first.to(weights.dtype)
    for index, layer in enumerate(weights.layers):
        y = layer.wo(_quantized(_attend(entering, layer, index, weights, arenas, tables, impl), weights, impl))
        x, *middle = gated_residual(
            x, y, modulation[:, 4 * index + 1], row, frame, eps=layer.wo_eps,
            next_multiplier=modulation[:, 4 * index + 2], next_eps=weights.norm_eps,
            quantize=weights.quantize, impl=impl,
        )  # fmt: skip
        y = layer.w2(swiglu(layer.gate_up(_one(middle)), quantize=weights.quantize, impl=impl))
        last = index + 1 == len(weights.layers)
        x, *middle = gated_residual(
            x, y, modulation[:, 4 * index + 3], row, frame, eps=layer.w2_eps,
            next_multiplier=modulation[:, 4 * index + 4], next_eps=weights.final_eps if last else weights.norm_eps,
            next_center=last, quantize=None if last else weights.quantize, impl=impl,
        )  # fmt: skip
        entering = _one(middle)
    assert isinstance(entering, Tensor)
    return functional.linear(entering.float(), weights.final, weights.final_bias)


def _attend(
    entering: Activation,
    layer: Layer,
    index: int,
    weights: StepWeights,
    arenas: Arenas,
    tables: TokenTables,
    impl: Impl,
) -> Tensor:
    """Return the attention's (tokens, heads * head_dim) of one layer, before wo."""
    qkv = layer.qkv(entering)
    kv_heads, head_dim = arenas.text_k.shape[2:]
    heads = layer.gate.shape[0]
    split = qkv.view(len(qkv), heads + 2 * kv_heads, head_dim)
    query, key, value = split[:, :heads], split[:, heads:-kv_heads], split[:, -kv_heads:]
    query, key = qk_norm_rope(
        qkv, layer.q_weight, layer.q_bias, layer.k_weight, layer.k_bias,
        tables.position, weights.cosine, weights.sine,
        heads=heads, kv_heads=kv_heads, eps=weights.qk_eps, impl=impl, q_out=query, k_out=key,
    )  # fmt: skip
    if tables.kv_index is not None:
        key = arenas.cache_k[index].index_copy_(0, tables.kv_index, key)
        value = arenas.cache_v[index].index_copy_(0, tables.kv_index, value)
    attended = frame_attention(
        query, key, value, tables.q_range, tables.kv_range,
        arenas.text_k[index], arenas.text_v[index], tables.text_range, layer.gate,
        softcap=weights.softcap, scale=weights.scale, impl=impl,
        query_tile=64 if len(qkv) <= SHORT else None,
    )  # fmt: skip
    flat: Tensor = attended.flatten(1)
    return flat


def _quantized(x: Tensor, weights: StepWeights, impl: Impl) -> Activation:
    return x if weights.quantize is None else quantize_rows(x, weights.quantize, impl=impl)


def _one(results: list[Tensor]) -> Activation:
    """Return what a kernel wrote beside its first result: values, or quantized values and their scales."""
    return (results[0], results[1]) if len(results) == 2 else results[0]
