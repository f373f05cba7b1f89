"""The table of kernels: every op of the denoiser, and the shapes of models it is compiled for."""

from importlib import import_module
from typing import Literal

from framert.kernels.specialization import ModelShape, Specialization

OPS = (
    "frame_attention",
    "qk_norm_rope",
    "norm_modulate",
    "gated_residual",
    "swiglu",
    "update",
    "quantize_rows",
    "scaled_matmul",
    "weight_only_matmul",
)
# The published configuration (arXiv:2411.16318 and its checkpoint), and models/blocks.
PUBLISHED = ModelShape(
    name="published",
    hidden=3840,
    depth=16,
    heads=32,
    kv_heads=8,
    head_dim=120,
    ffn=10240,
    token_width=64,
    softcap=30.0,
)
BLOCKS = ModelShape(
    name="blocks", hidden=288, depth=8, heads=6, kv_heads=2, head_dim=48, ffn=768, token_width=16, softcap=30.0
)
QUANTIZED = {"*i8": "int8", "*u8": "int4", "*fp8e4nv": "fp8"}


def collect(
    op: str, shape: ModelShape, dtype: Literal["bf16", "fp16", "fp32"], capability: int
) -> list[Specialization]:
    """Return the kernels of one op, as its own module lists them."""
    found: list[Specialization] = import_module(f"framert.kernels.{op}.kernel").specializations(
        shape, dtype, capability
    )
    return found


def quantized_kind(specialization: Specialization) -> str | None:
    """Return "int8", "int4" or "fp8" for a kernel that reads or writes quantized values, else None."""
    kinds = {QUANTIZED[kind] for kind in specialization.signature.values() if kind in QUANTIZED}
    return min(kinds) if kinds else None
