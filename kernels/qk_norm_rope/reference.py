"""Norm and rotation of queries and keys in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    position: Tensor,
    cosine: Tensor,
    sine: Tensor,
    *,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return LayerNorm over concatenated heads, then rotation; see the api. Also runs in float64."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    query, key, _ = torch.split(qkv.to(wide), [count * head_dim for count in (heads, kv_heads, kv_heads)], dim=1)
    index = position.long()
    # (tokens, 3, head_dim / 6) -> (tokens, 1, head_dim / 2): the pairs of the frame axis, then row, then column
    angle = [table.to(wide)[index].flatten(1).unsqueeze(1) for table in (cosine, sine)]
    query = functional.layer_norm(query, query.shape[1:], q_weight.to(wide), q_bias.to(wide), eps)
    key = functional.layer_norm(key, key.shape[1:], k_weight.to(wide), k_bias.to(wide), eps)
    return (
        rotate(query.view(-1, heads, head_dim), *angle).to(qkv.dtype),
        rotate(key.view(-1, kv_heads, head_dim), *angle).to(qkv.dtype),
    )


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i + 1]). x: (tokens, heads, head_dim); cosine, sine: (tokens, 1, head_dim / 2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)
