"""Frame attention in plain torch, one sequence after another: reads like the formula, and serves as the oracle."""

import torch
from torch import Tensor


def frame_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_range: Tensor,
    kv_range: Tensor,
    text_k: Tensor | None = None,
    text_v: Tensor | None = None,
    text_range: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    softcap: float,
    scale: float,
) -> Tensor:
    """Return self-attention within each packed sequence plus gated attention to the sequence's text.

    Query head h reads key-value head ``h // (heads / kv_heads)`` of its own sequence (repeat-interleave), and
    head ``h % kv_heads`` of its text (tile): the published model groups the two differently.

    Args:
        query: (tokens, heads, head_dim), after norm and rotation.
        key, value: (tokens, kv_heads, head_dim).
        q_range, kv_range: (sequences, 2) int32, begin and length of each sequence's queries and of its keys.
        text_k, text_v: (capacity, kv_heads, head_dim), text keys and values of this layer.
        text_range: (sequences, 2) int32, begin and length of each sequence's text.
        gate: (heads,), tanh already applied. Without the four arguments of the text there is no text attention.
        softcap: self-attention logits become ``softcap * tanh(logits / softcap)``; 0 leaves them. Text has none.
        scale: multiplies query-key products, of both kinds.
    Returns: (tokens, heads, head_dim), dtype of ``query``; tokens outside every ``q_range`` are zero.
    Source: OneDiffusion, arXiv:2411.16318; NextDiT block.
    """
    out = torch.zeros_like(query)
    text_ranges = [(0, 0)] * len(q_range) if text_range is None else text_range.tolist()
    for (q0, nq), (k0, nk), (t0, nt) in zip(q_range.tolist(), kv_range.tolist(), text_ranges, strict=True):
        if not nq:
            continue
        q = query[q0 : q0 + nq].transpose(0, 1)
        own = _attend(q, _repeat(key[k0 : k0 + nk], q), _repeat(value[k0 : k0 + nk], q), scale, softcap)
        if text_k is not None and text_v is not None and gate is not None:
            text = _attend(q, _tile(text_k[t0 : t0 + nt], q), _tile(text_v[t0 : t0 + nt], q), scale, 0.0)
            own = own + gate[:, None, None] * text
        out[q0 : q0 + nq] = own.transpose(0, 1)
    return out


def _repeat(x: Tensor, query: Tensor) -> Tensor:
    return x.transpose(0, 1).repeat_interleave(query.shape[0] // x.shape[1], dim=0)


def _tile(x: Tensor, query: Tensor) -> Tensor:
    return x.transpose(0, 1).repeat(query.shape[0] // x.shape[1], 1, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention of (heads, n, head_dim) on (heads, m, head_dim); zero where m is 0."""
    logits = query @ key.transpose(1, 2) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.softmax(logits, dim=-1) @ value
