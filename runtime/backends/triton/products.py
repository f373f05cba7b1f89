"""The products of a step: weights as a bundle has them, joined where one product serves several, and quantized."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from framert.kernels.dispatch import Impl
from framert.kernels.quantize_rows.api import quantize_rows
from framert.kernels.quantize_rows.reference import Kind
from framert.kernels.scaled_matmul.api import scaled_matmul
from framert.runtime.backends.triton.graph_file import GraphFile

Precision = Literal["bf16", "fp16", "fp32", "int8", "fp8"]
COMPUTE = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.bfloat16,
    "fp8": torch.bfloat16,
}
Activation = Tensor | tuple[Tensor, Tensor]  # values, or int8 / fp8 values with their scale per token


@dataclass(frozen=True, slots=True)
class Projection:
    """A product with weights (outputs, inputs); quantized ones have a scale per output and take quantized inputs."""

    weight: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    impl: Impl
    bias: Tensor | None = None

    def __call__(self, x: Activation) -> Tensor:
        if self.scale is None:
            assert isinstance(x, Tensor)
            return functional.linear(x, self.weight, self.bias)
        values, scale = x
        return scaled_matmul(
            values, self.weight, scale, self.scale, out_dtype=self.dtype, bias=self.bias, impl=self.impl
        )


def quantized(x: Tensor, kind: Kind | None, impl: Impl) -> Activation:
    """Return x (tokens, width) as a product takes it."""
    return x if kind is None else quantize_rows(x, kind, impl=impl)


def only(results: Sequence[Tensor]) -> Activation:
    """Return what a kernel wrote beside its first result: values, or quantized values and their scales."""
    return (results[0], results[1]) if len(results) == 2 else results[0]


class Reader:
    """Reads weights of a graph to a device, one at a time, for products in one precision."""

    def __init__(self, file: GraphFile, precision: Precision, device: torch.device, impl: Impl) -> None:
        self._file = file
        self._device = device
        self._impl = impl
        self.dtype = COMPUTE[precision]
        self.kind: Kind | None = precision if precision in ("int8", "fp8") else None

    def tensor(self, name: str) -> Tensor:
        """Return a weight in fp32."""
        return self._file.tensor(name).to(self._device, torch.float32).contiguous()

    def linear(self, name: str) -> Tensor:
        """Return the weight of a Linear as the checkpoint has it, (outputs, inputs); export stores its transpose."""
        stored = f"{name}.weight_transpose"
        if stored in self._file.weights:
            return self.tensor(stored).T.contiguous()
        return self.tensor(f"{name}.weight")

    def project(
        self, names: Sequence[str], factors: Sequence[float] | None = None, *, biased: bool = False
    ) -> Projection:
        """Return the product that makes the outputs of several Linears in turn, each weight times its factor."""
        parts = [self.linear(name) for name in names]
        if factors is not None:
            parts = [part * factor for part, factor in zip(parts, factors, strict=True)]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        bias = torch.cat([self.tensor(f"{name}.bias") for name in names]).to(self.dtype) if biased else None
        if self.kind is None:
            return Projection(joined.to(self.dtype).contiguous(), None, self.dtype, self._impl, bias)
        # once per load: plain torch does it on the device as well, and there is nothing to compile or to interpret
        packed = quantize_rows(joined.contiguous(), self.kind, impl="reference")
        return Projection(*packed, self.dtype, self._impl, bias)
