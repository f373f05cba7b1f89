"""The weights of the step: the checkpoint's, joined where one product serves two or three, and quantized."""

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
from framert.runtime.errors import BackendError

Precision = Literal["bf16", "fp16", "fp32", "int8", "fp8"]
COMPUTE = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.bfloat16,
    "fp8": torch.bfloat16,
}
# fp16 ends at 65504, and models of this lineage go beyond it behind w3, w2 and wo. The norms after w2 and wo cancel any
# common factor, so these weights are taken times 2^-6, and the norms' eps times its square.
FP16_FACTOR = 2.0**-6
Activation = Tensor | tuple[Tensor, Tensor]  # values, or int8 / fp8 values with their scale per token


@dataclass(frozen=True, slots=True)
class Projection:
    """A product with weights (outputs, inputs); quantized ones have a scale per output and take quantized inputs."""

    weight: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    impl: Impl

    def __call__(self, x: Activation) -> Tensor:
        if self.scale is None:
            assert isinstance(x, Tensor)
            return functional.linear(x, self.weight)
        values, scale = x
        return scaled_matmul(values, self.weight, scale, self.scale, out_dtype=self.dtype, impl=self.impl)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer. qkv and gate_up are two or three of the checkpoint's products in one; eps: of the norm after each."""

    qkv: Projection
    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    gate: Tensor
    wo: Projection
    wo_eps: float
    gate_up: Projection
    w2: Projection
    w2_eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWeights:
    """Everything the step reads that is not an input. First and last product, tables and norms are fp32.

    quantize: how the inputs of the layers' products are quantized. norm_eps: of the norms before the branches.
    """

    layers: tuple[Layer, ...]
    embed: Tensor
    embed_bias: Tensor
    final: Tensor
    final_bias: Tensor
    cosine: Tensor
    sine: Tensor
    softcap: float
    scale: float
    norm_eps: float
    qk_eps: float
    final_eps: float
    quantize: Kind | None
    dtype: torch.dtype


def read(file: GraphFile, depth: int, precision: Precision, device: torch.device, impl: Impl) -> StepWeights:
    """Read a OneDiffusion denoiser's graph for a precision.

    Raises: BackendError if the graph has no weights of these names: another family, or a bundle already quantized.
    """
    reader = _Reader(file, device)
    attention = next((node for node in file.nodes if node.op == "framert.FrameAttention"), None)
    if attention is None or not {"cos", "sin", "ones"} <= file.weights:
        raise BackendError(
            f"{file.path} is no OneDiffusion denoiser in fp32, the only one backend 'triton' has; "
            "export the checkpoint in fp32, or choose backend='onnxruntime'"
        )
    quantize: Kind | None = precision if precision in ("int8", "fp8") else None
    dtype = COMPUTE[precision]
    factor = FP16_FACTOR if precision == "fp16" else 1.0
    norm_eps = float(file.node_of("RMSNormalization", "ones").attributes["epsilon"])

    def project(names: Sequence[str], factors: Sequence[float]) -> Projection:
        parts = [reader.linear(name) * part for name, part in zip(names, factors, strict=True)]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        if quantize is None:
            return Projection(joined.to(dtype).contiguous(), None, dtype, impl)
        # once per load: plain torch does it on the device as well, and there is nothing to compile or to interpret
        return Projection(*quantize_rows(joined.contiguous(), quantize, impl="reference"), dtype, impl)

    def layer(index: int) -> Layer:
        own, feed = f"layers.{index}.attention", f"layers.{index}.feed_forward"
        return Layer(
            qkv=project([f"{own}.wq", f"{own}.wk", f"{own}.wv"], [1.0] * 3),
            q_weight=reader.tensor(f"{own}.q_norm.weight"),
            q_bias=reader.tensor(f"{own}.q_norm.bias"),
            k_weight=reader.tensor(f"{own}.k_norm.weight"),
            k_bias=reader.tensor(f"{own}.k_norm.bias"),
            gate=reader.tensor(f"{own}.gate_tanh"),
            wo=project([f"{own}.wo"], [factor]),
            wo_eps=norm_eps * factor**2,
            gate_up=project([f"{feed}.w1", f"{feed}.w3"], [1.0, factor]),
            w2=project([f"{feed}.w2"], [factor]),
            w2_eps=norm_eps * factor**4,
        )

    return StepWeights(
        layers=tuple(layer(index) for index in range(depth)),
        embed=reader.linear("x_embedder"),
        embed_bias=reader.tensor("x_embedder.bias"),
        final=reader.linear("final_layer.linear"),
        final_bias=reader.tensor("final_layer.linear.bias"),
        cosine=reader.tensor("cos"),
        sine=reader.tensor("sin"),
        softcap=float(attention.attributes["softcap"]),
        scale=float(attention.attributes["scale"]),
        norm_eps=norm_eps,
        qk_eps=float(file.node_of("LayerNormalization", "layers.0.attention.q_norm.weight").attributes["epsilon"]),
        final_eps=float(file.node_of("LayerNormalization", "ones").attributes["epsilon"]),
        quantize=quantize,
        dtype=dtype,
    )


class _Reader:
    """Reads weights to the device in fp32, one at a time."""

    def __init__(self, file: GraphFile, device: torch.device) -> None:
        self._file = file
        self._device = device

    def tensor(self, name: str) -> Tensor:
        return self._file.tensor(name).to(self._device, torch.float32).contiguous()

    def linear(self, name: str) -> Tensor:
        """Return the weight of a Linear as the checkpoint has it, (outputs, inputs); export stores its transpose."""
        stored = f"{name}.weight_transpose"
        if stored in self._file.weights:
            return self.tensor(stored).T.contiguous()
        return self.tensor(f"{name}.weight")
