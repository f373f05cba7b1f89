"""LayerNorm of queries and keys over their concatenated heads, and rotary embedding on three axes, in one pass."""

import torch
from torch import Tensor

from framert.kernels.checks import FLOATS, check
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.qk_norm_rope import reference
from framert.runtime.errors import ConfigError, ShapeError


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
    impl: Impl = "auto",
    q_out: Tensor | None = None,
    k_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the normed and rotated queries and keys of a fused projection.

    Args:
        qkv: (tokens, (heads + 2 * kv_heads) * head_dim), ``[q | k | v]``, bf16, fp16 or fp32, contiguous.
            head_dim must be divisible by 6: interleaved pairs, a third of them for each axis.
        q_weight, q_bias: (heads * head_dim,); k_weight, k_bias: (kv_heads * head_dim,); any of these dtypes.
        position: (tokens, 3) int32: frame, row, column, values in [0, positions).
        cosine, sine: (positions, head_dim / 6) fp32, the angles of one axis; pair i of a head turns by the angle of
            axis ``i // (head_dim / 6)`` and frequency ``i % (head_dim / 6)``.
        heads, kv_heads: numbers of query heads and of key (and value) heads.
        eps: of both norms.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
        q_out, k_out: where to write, (tokens, heads or kv_heads, head_dim), dtype of ``qkv``, any token stride;
            views of ``qkv``'s own query and key parts are allowed. None allocates.
    Returns: query (tokens, heads, head_dim) and key (tokens, kv_heads, head_dim), dtype of ``qkv``, computed in fp32
        and rounded once. The value is ``qkv``'s last part as it is.
    Raises: ShapeError if shapes, dtypes or devices disagree; ConfigError for head counts that do not fit;
        BackendError where ``impl`` cannot run.
    Source: OneDiffusion, arXiv:2411.16318, NextDiT attention.
    """
    name = "qk_norm_rope"
    check(name, "qkv", qkv, (None, None), FLOATS)
    tokens, width = qkv.shape
    if heads < 1 or kv_heads < 1 or width % (heads + 2 * kv_heads):
        raise ConfigError(
            f"{name}: qkv has {width} columns, which {heads} heads + 2 * {kv_heads} kv_heads do not divide"
        )
    head_dim = width // (heads + 2 * kv_heads)
    if head_dim % 6:
        raise ShapeError(f"{name}: head_dim is {head_dim}; three rotary axes of pairs need a multiple of 6")
    for label, vector, count in (
        ("q_weight", q_weight, heads),
        ("q_bias", q_bias, heads),
        ("k_weight", k_weight, kv_heads),
        ("k_bias", k_bias, kv_heads),
    ):
        check(name, label, vector, (count * head_dim,), FLOATS, device=qkv.device)
    check(name, "position", position, (tokens, 3), (torch.int32,), device=qkv.device)
    check(name, "cosine", cosine, (None, head_dim // 6), (torch.float32,), device=qkv.device)
    check(name, "sine", sine, tuple(cosine.shape), (torch.float32,), device=qkv.device)
    for label, out, count in (("q_out", q_out, heads), ("k_out", k_out, kv_heads)):
        if out is not None:
            check(name, label, out, (tokens, count, head_dim), (qkv.dtype,), contiguous_from=1, device=qkv.device)
    query = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device) if q_out is None else q_out
    key = torch.empty((tokens, kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device) if k_out is None else k_out
    arguments = (qkv, q_weight, q_bias, k_weight, k_bias, position, cosine, sine)
    if use_triton(impl, qkv, name):
        from framert.kernels.qk_norm_rope import kernel

        kernel.launch(*arguments, query, key, eps=eps)
    else:
        results = reference.qk_norm_rope(*arguments, heads=heads, kv_heads=kv_heads, eps=eps)
        query.copy_(results[0])
        key.copy_(results[1])
    return query, key
