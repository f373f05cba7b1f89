"""NextDiT on dense batches of equally long sequences: the runtime's blocks, with an attention that trains fast."""

from collections.abc import Callable

import torch
from torch import Tensor

from framert.export.models.nextdit import Block, NextDiT


def velocity(
    model: NextDiT,
    samples: Tensor,
    levels: Tensor,
    text: Tensor,
    text_mask: Tensor,
    rotary: tuple[Tensor, Tensor],
    layer: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return the velocity (batch, frames, tokens, width) of dense sequences.

    Args:
        samples: (batch, frames, tokens, width), tokens of a frame row by row.
        levels: (batch, frames), noise levels in 0..1000.
        text: (batch, length, caption_channels); text_mask: (batch, length), True on tokens that count.
        rotary: cosine and sine of ``rotary_tables``.
        layer: ``run_layer``, or what a compiler made of it; one compilation serves all layers.
    """
    layer = layer or run_layer
    weight = text_mask.unsqueeze(-1).to(text.dtype)
    pooled = (text * weight).sum(1) / weight.sum(1)
    condition = model.t_embedder(levels) + model.y_embedder(pooled).unsqueeze(1)
    x = model.x_embedder(samples).float()
    for block in model.blocks():
        x = layer(block, x, condition, text, text_mask, rotary, model.config.softcap)
    return model.final_layer(x, model.final_layer.modulation(condition).unsqueeze(2))


def run_layer(
    block: Block,
    x: Tensor,
    condition: Tensor,
    text: Tensor,
    text_mask: Tensor,
    rotary: tuple[Tensor, Tensor],
    softcap: float,
) -> Tensor:
    """Return x (batch, frames, tokens, hidden) behind one layer. condition: (batch, frames, condition_width)."""
    text_key, text_value = block.text(text)
    scale = block.attention.head_dim**-0.5

    def attend(query: Tensor, key: Tensor, value: Tensor, gate: Tensor) -> Tensor:
        return attention(query, key, value, gate, text_key, text_value, text_mask, softcap, scale)

    return block(x, block.modulation(condition).unsqueeze(2).unbind(3), *rotary, attend)


def rotary_tables(model: NextDiT, frames: int, side: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, (frames, side * side, head_dim / 2) each, of frames of ``side`` x ``side`` tokens."""
    axes = (torch.arange(frames), torch.arange(side), torch.arange(side))
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(1, 2)
    return model.rotary(position.to(model.x_embedder.weight.device))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    text_mask: Tensor,
    softcap: float,
    scale: float,
) -> Tensor:
    """Return softcapped self-attention over a sequence plus gated attention to its text, in the dtype of ``value``.

    query, key, value: (batch, frames, tokens, heads or kv_heads, head_dim); text_key, text_value: (batch, length,
    kv_heads, head_dim). Query head h reads own head h // group and text head h % kv_heads.
    """
    batch, frames, tokens, heads, width = query.shape
    kv_heads = key.shape[3]
    group = heads // kv_heads
    query, key = (query * scale).to(value.dtype), key.to(value.dtype)
    # (batch, kv_heads, group * length, head_dim): the heads that share a key are folded into the rows.
    own = query.reshape(batch, -1, kv_heads, group, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    key, value = key.flatten(1, 2).transpose(1, 2), value.flatten(1, 2).transpose(1, 2)
    logits = (own * (1 / softcap)) @ key.transpose(2, 3)
    mixed = torch.softmax(torch.tanh(logits) * softcap, dim=-1).to(value.dtype) @ value
    mixed = mixed.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    asked = query.reshape(batch, -1, group, kv_heads, width).permute(0, 3, 2, 1, 4).flatten(2, 3)
    hidden = torch.zeros(text_mask.shape, dtype=value.dtype, device=query.device).masked_fill(~text_mask, -1e4)
    logits = asked @ text_key.to(value.dtype).permute(0, 2, 3, 1) + hidden[:, None, None]
    told = torch.softmax(logits, dim=-1).to(value.dtype) @ text_value.to(value.dtype).transpose(1, 2)
    told = told.unflatten(2, (group, -1)).permute(0, 3, 2, 1, 4).flatten(2, 3)
    return (mixed + gate.to(value.dtype)[:, None] * told).view(batch, frames, tokens, heads, width)
