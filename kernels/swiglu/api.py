"""SwiGLU of a fused gate-and-up projection, quantized if asked."""

from typing import overload

import torch
from torch import Tensor

from framert.kernels.checks import FLOATS, check, check_quantize
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.quantize_rows.reference import DTYPE, Kind
from framert.kernels.swiglu import reference
from framert.runtime.errors import ShapeError


@overload
def swiglu(gate_up: Tensor, *, quantize: None = None, impl: Impl = "auto") -> Tensor: ...


@overload
def swiglu(gate_up: Tensor, *, quantize: Kind, impl: Impl = "auto") -> tuple[Tensor, Tensor]: ...


def swiglu(gate_up: Tensor, *, quantize: Kind | None = None, impl: Impl = "auto") -> Tensor | tuple[Tensor, Tensor]:
    """Return ``silu(gate) * up`` where ``gate_up`` is ``[gate | up]``, one after the other on the last axis.

    Args:
        gate_up: (tokens, 2 * ffn), bf16, fp16 or fp32, contiguous: ``[w1 x | w3 x]``.
        quantize: None, or the per-token symmetric format of the result.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
    Returns: (tokens, ffn), dtype of ``gate_up``, computed in fp32 and rounded once. With ``quantize``: y int8 or
        float8_e4m3fn and scale (tokens,) fp32; the value is ``y * scale[:, None]``.
    Raises: ShapeError for a wrong shape or dtype; ConfigError for an unknown ``quantize``; BackendError where
        ``impl`` or float8 cannot run.
    Source: Shazeer, arXiv:2002.05202.
    """
    name = "swiglu"
    check(name, "gate_up", gate_up, (None, None), FLOATS)
    tokens, width = gate_up.shape
    if width % 2:
        raise ShapeError(f"{name}: gate_up has {width} columns; it must hold two halves of the same width")
    check_quantize(name, quantize, gate_up)
    if not use_triton(impl, gate_up, name):
        return reference.swiglu(gate_up, quantize=quantize)
    from framert.kernels.swiglu import kernel

    dtype = gate_up.dtype if quantize is None else DTYPE[quantize]
    y = torch.empty((tokens, width // 2), dtype=dtype, device=gate_up.device)
    scale = None if quantize is None else torch.empty(tokens, dtype=torch.float32, device=gate_up.device)
    kernel.launch(gate_up, y, scale, quantize=quantize)
    return y if scale is None else (y, scale)
