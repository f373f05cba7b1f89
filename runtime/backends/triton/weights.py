"""The weights of OneDiffusion's step, as its denoiser's graph has them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from framert.kernels.dispatch import Impl
from framert.kernels.quantize_rows.reference import Kind
from framert.runtime.backends.triton.graph_file import GraphFile
from framert.runtime.backends.triton.products import Precision, Projection, Reader
from framert.runtime.errors import BackendError

# fp16 ends at 65504, and models of this lineage go beyond it behind w3, w2 and wo. The norms after w2 and wo cancel any
# common factor, so these weights are taken times 2^-6, and the norms' eps times its square.
FP16_FACTOR = 2.0**-6


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
    reader = Reader(file, precision, device, impl)
    attention = next((node for node in file.nodes if node.op == "framert.FrameAttention"), None)
    if attention is None or not {"cos", "sin", "ones"} <= file.weights:
        raise BackendError(
            f"{file.path} is no OneDiffusion denoiser in fp32; "
            "export the checkpoint in fp32, or choose backend='onnxruntime'"
        )
    factor = FP16_FACTOR if precision == "fp16" else 1.0
    norm_eps = float(file.node_of("RMSNormalization", "ones").attributes["epsilon"])

    def layer(index: int) -> Layer:
        own, feed = f"layers.{index}.attention", f"layers.{index}.feed_forward"
        return Layer(
            qkv=reader.project([f"{own}.wq", f"{own}.wk", f"{own}.wv"]),
            q_weight=reader.tensor(f"{own}.q_norm.weight"),
            q_bias=reader.tensor(f"{own}.q_norm.bias"),
            k_weight=reader.tensor(f"{own}.k_norm.weight"),
            k_bias=reader.tensor(f"{own}.k_norm.bias"),
            gate=reader.tensor(f"{own}.gate_tanh"),
            wo=reader.project([f"{own}.wo"], [factor]),
            wo_eps=norm_eps * factor**2,
            gate_up=reader.project([f"{feed}.w1", f"{feed}.w3"], [1.0, factor]),
            w2=reader.project([f"{feed}.w2"], [factor]),
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
        quantize=reader.kind,
        dtype=reader.dtype,
    )
