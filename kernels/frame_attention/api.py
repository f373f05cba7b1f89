"""Attention of packed frame sequences and their text: checks, and the choice between Triton and plain torch."""

import math

import torch
from torch import Tensor

from framert.kernels.checks import FLOATS, check
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.frame_attention import reference
from framert.runtime.errors import ConfigError, ShapeError

NAME = "frame_attention"
MAX_HEAD_DIM = 128


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
    impl: Impl = "auto",
    query_tile: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return self-attention within each packed sequence plus gated attention to the sequence's text.

    Query head h reads key-value head ``h // (heads / kv_heads)`` of its own sequence, and head ``h % kv_heads`` of its
    text. A sequence's result has the same bits whatever it is packed with. Ranges are read on the device alone; those
    of queries must lie within the tokens and not overlap, those of keys and text may be shared.

    Args:
        query: (tokens, heads, head_dim), bf16, fp16 or fp32, after norm and rotation; head_dim even, at most 128.
        key, value: (kv tokens, kv_heads, head_dim), dtype of ``query``. These three may be views with any row stride,
            such as the parts of one fused projection.
        q_range, kv_range: (sequences, 2) int32, begin and length of each sequence's queries and of its keys.
        text_k, text_v: (capacity, kv_heads, head_dim), text keys and values of this layer; any row stride.
        text_range: (sequences, 2) int32, begin and length of each sequence's text.
        gate: (heads,) float, tanh already applied. Leave the last four out together for no text attention.
        softcap: self-attention logits become ``softcap * tanh(logits / softcap)``; 0 leaves them. Text has none.
        scale: multiplies query-key products, of both kinds.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
        query_tile: query rows of one program, 64 or 128; None is the size that is faster on long sequences. Make it a
            constant of the token bucket: another size may round the last bit differently.
        out: written and returned if given, any row stride; must not overlap the inputs.
    Returns: (tokens, heads, head_dim), dtype of ``query``; computed in fp32. Tokens outside every ``q_range`` are zero.
        The reference takes fp64 too.
    Raises: ShapeError if shapes, dtypes, layouts or devices disagree; ConfigError for a softcap, scale or query_tile
        that is not allowed; BackendError for ``impl="triton"`` where it cannot run.
    Source: OneDiffusion, arXiv:2411.16318; NextDiT block.
    """
    text = _check(query, key, value, q_range, kv_range, (text_k, text_v, text_range, gate), out)
    if not math.isfinite(softcap) or softcap < 0 or not math.isfinite(scale) or scale <= 0:
        raise ConfigError(f"{NAME}: softcap is {softcap} and scale {scale}; give softcap >= 0 (0: none) and scale > 0")
    if not use_triton(impl, query, NAME):
        result = reference.frame_attention(
            query, key, value, q_range, kv_range, *(text or ()), softcap=softcap, scale=scale
        )
        return result if out is None else out.copy_(result)
    if query.dtype not in FLOATS:
        raise ShapeError(f"{NAME}: query is {query.dtype}; triton takes bf16, fp16 or fp32")
    from framert.kernels.frame_attention import kernel

    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    kernel.frame_attention(
        query, key, value, q_range, kv_range, text, out, softcap=softcap, scale=scale, query_tile=query_tile
    )
    return out


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_range: Tensor,
    kv_range: Tensor,
    text: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Raise ShapeError unless the arguments fit each other; return the text's four, or None where there is no text."""
    dtypes, device = (*FLOATS, torch.float64), query.device
    check(NAME, "query", query, (None, None, None), dtypes, contiguous_from=1)
    _, heads, head_dim = query.shape
    if head_dim % 2 or not 0 < head_dim <= MAX_HEAD_DIM:
        raise ShapeError(f"{NAME}: head_dim is {head_dim}; it must be even and at most {MAX_HEAD_DIM}")
    same = (query.dtype,)
    check(NAME, "key", key, (None, None, head_dim), same, contiguous_from=1, device=device)
    kv_heads = key.shape[1]
    if not kv_heads or heads % kv_heads:
        raise ShapeError(f"{NAME}: {heads} query heads cannot share {kv_heads} key-value heads; give a divisor")
    check(NAME, "value", value, key.shape, same, contiguous_from=1, device=device)
    check(NAME, "q_range", q_range, (None, 2), (torch.int32,), contiguous_from=0, device=device)
    check(NAME, "kv_range", kv_range, q_range.shape, (torch.int32,), contiguous_from=0, device=device)
    if out is not None:
        check(NAME, "out", out, query.shape, same, contiguous_from=1, device=device)
    text_k, text_v, text_range, gate = text
    if text_k is None or text_v is None or text_range is None or gate is None:
        if any(part is not None for part in text):
            raise ShapeError(f"{NAME}: give text_k, text_v, text_range and gate together, or none of them")
        return None
    check(NAME, "text_k", text_k, (None, kv_heads, head_dim), same, contiguous_from=1, device=device)
    check(NAME, "text_v", text_v, text_k.shape, same, contiguous_from=1, device=device)
    check(NAME, "text_range", text_range, q_range.shape, (torch.int32,), contiguous_from=0, device=device)
    check(NAME, "gate", gate, (heads,), dtypes, device=device)
    return text_k, text_v, text_range, gate
