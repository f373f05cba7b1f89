"""OneDiffusion's step over packed tokens: products with weights, and framert's kernels between them."""

import torch
from torch import Tensor
from torch.nn import functional

from framert.kernels.frame_attention.api import frame_attention
from framert.kernels.gated_residual.api import gated_residual
from framert.kernels.norm_modulate.api import norm_modulate
from framert.kernels.qk_norm_rope.api import qk_norm_rope
from framert.kernels.swiglu.api import swiglu
from framert.runtime.backends.triton.model import Arenas, TokenTables, query_tile
from framert.runtime.backends.triton.products import Activation, only, quantized
from framert.runtime.backends.triton.settings import Settings
from framert.runtime.backends.triton.weights import Layer, StepWeights
from framert.runtime.manifest import ModelSpec


class FrameModel:
    """OneDiffusion's step: frames attend to frames, and through a gate to the keys and values of their text.

    Args:
        weights: as ``weights.read`` returns them. model: sizes. settings: dtypes and implementation.
    """

    text_axis = 1

    def __init__(self, weights: StepWeights, model: ModelSpec, settings: Settings) -> None:
        self.weights = weights
        self._model = model
        self._settings = settings

    def empty(self) -> Arenas:
        """Return arenas without rows; keys and values are (depth, tokens, kv_heads, head_dim) each."""
        model, device = self._model, self._settings.device
        heads = torch.zeros(model.depth, 0, model.kv_heads, model.head_dim, dtype=self.weights.dtype, device=device)
        rows = torch.zeros(0, model.modulation_count, model.hidden_size, dtype=self._settings.modulation, device=device)
        return Arenas(text=(heads, heads), modulation=rows, cache=(heads, heads))

    def velocity(self, arenas: Arenas, tables: TokenTables, latents: Tensor) -> Tensor:
        weights, impl, residual = self.weights, self._settings.impl, self._settings.residual
        row, frame, modulation = tables.row, tables.frame, arenas.modulation
        x = functional.linear(latents.index_select(0, tables.source), weights.embed, weights.embed_bias).to(residual)
        first = norm_modulate(
            x, modulation[:, 0], row, frame, eps=weights.norm_eps, quantize=weights.quantize, impl=impl
        )
        entering: Activation = first if isinstance(first, tuple) else first.to(weights.dtype)
        for index, layer in enumerate(weights.layers):
            y = layer.wo(quantized(self._attend(entering, layer, index, arenas, tables), weights.quantize, impl))
            x, *middle = gated_residual(
                x, y, modulation[:, 4 * index + 1], row, frame, eps=layer.wo_eps,
                next_multiplier=modulation[:, 4 * index + 2], next_eps=weights.norm_eps,
                quantize=weights.quantize, impl=impl,
            )  # fmt: skip
            y = layer.w2(swiglu(layer.gate_up(only(middle)), quantize=weights.quantize, impl=impl))
            last = index + 1 == len(weights.layers)
            x, *middle = gated_residual(
                x, y, modulation[:, 4 * index + 3], row, frame, eps=layer.w2_eps,
                next_multiplier=modulation[:, 4 * index + 4], next_eps=weights.final_eps if last else weights.norm_eps,
                next_center=last, quantize=None if last else weights.quantize, impl=impl,
            )  # fmt: skip
            entering = only(middle)
        assert isinstance(entering, Tensor)
        return functional.linear(entering.float(), weights.final, weights.final_bias)

    def _attend(self, entering: Activation, layer: Layer, index: int, arenas: Arenas, tables: TokenTables) -> Tensor:
        """Return the attention's (tokens, heads * head_dim) of one layer, before wo."""
        weights, impl = self.weights, self._settings.impl
        text_k, text_v = arenas.text
        qkv = layer.qkv(entering)
        kv_heads, head_dim = text_k.shape[2:]
        heads = layer.gate.shape[0]
        split = qkv.view(len(qkv), heads + 2 * kv_heads, head_dim)
        query, key, value = split[:, :heads], split[:, heads:-kv_heads], split[:, -kv_heads:]
        query, key = qk_norm_rope(
            qkv, layer.q_weight, layer.q_bias, layer.k_weight, layer.k_bias,
            tables.position, weights.cosine, weights.sine,
            heads=heads, kv_heads=kv_heads, eps=weights.qk_eps, impl=impl, q_out=query, k_out=key,
        )  # fmt: skip
        if tables.kv_index is not None:
            cache_k, cache_v = arenas.cache
            key = cache_k[index].index_copy_(0, tables.kv_index, key)
            value = cache_v[index].index_copy_(0, tables.kv_index, value)
        attended = frame_attention(
            query, key, value, tables.q_range, tables.kv_range,
            text_k[index], text_v[index], tables.text_range, layer.gate,
            softcap=weights.softcap, scale=weights.scale, impl=impl,
            query_tile=query_tile(len(qkv)),
        )  # fmt: skip
        flat: Tensor = attended.flatten(1)
        return flat
