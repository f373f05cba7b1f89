"""ONNX operators that stand for parts of the model while it is traced: one node where plain torch leaves ten."""

import torch
from torch import Tensor

DOMAIN = "framert"


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
    """Stand for ``kernels.frame_attention``: a node with a local function, see ``export.frame_attention``."""
    inputs: tuple[Tensor, ...] = (query, key, value, q_range, kv_range)
    if text_k is not None and text_v is not None and text_range is not None and gate is not None:
        inputs += (text_k, text_v, text_range, gate)
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::FrameAttention",
        inputs,
        attrs={"softcap": softcap, "scale": scale, "plugin_namespace": DOMAIN},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Return x over its root mean square; see ``models.nextdit.rms_norm``."""
    ones = torch.ones(x.shape[-1], dtype=x.dtype)
    return torch.onnx.ops.symbolic(
        "RMSNormalization", (x, ones), attrs={"axis": -1, "epsilon": eps}, dtype=x.dtype, shape=x.shape
    )


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x (tokens, heads, head_dim) with interleaved pairs rotated; see ``models.nextdit.rotate``."""
    flat = x.flatten(-2).unsqueeze(0)
    turned = torch.onnx.ops.symbolic(
        "RotaryEmbedding",
        (flat, cosine.unsqueeze(0), sine.unsqueeze(0)),
        attrs={"interleaved": 1, "num_heads": x.shape[-2]},
        dtype=x.dtype,
        shape=flat.shape,
    )
    return turned.reshape(x.shape)
