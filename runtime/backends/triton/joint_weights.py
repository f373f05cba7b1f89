"""The weights of an MM-DiT's step, as its denoiser's graph has them: UniVG's and Stable Diffusion 3's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from framert.kernels.dispatch import Impl
from framert.kernels.quantize_rows.reference import Kind
from framert.runtime.backends.triton.graph_file import GraphFile
from framert.runtime.backends.triton.products import Precision, Projection, Reader
from framert.runtime.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulated:
    """Where a branch finds its multipliers in a modulation row: of the norm before it, and its gate, if it has one."""

    multiplier: int
    shift: int
    gate: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention's products. image: query, key and value in one; text: alike, in the last layer key and value alone.

    norms: (4, head_dim), weights of the norms of the image's queries and keys and of the text's, ones where the text
    has no such; None without norms. text is None where the image attends to itself alone.
    """

    image: Projection
    image_out: Projection
    text: Projection | None
    text_out: Projection | None
    norms: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    up: Projection
    down: Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer of both streams; the last one updates no text, so that what it would need is None.

    second: the image's attention to itself, if the layer has one. The others say where the multipliers of attention,
    feed-forward and second attention are.
    """

    attention: Attention
    second: Attention | None
    image_feed: FeedForward
    text_feed: FeedForward | None
    image: Modulated
    image_fed: Modulated
    image_second: Modulated | None
    text: Modulated
    text_fed: Modulated | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JointWeights:
    """Everything the step reads that is not an input. First and last product and the table of positions are fp32.

    embed: (hidden, token_width); shown: (hidden, condition width) or None; positions: (side * side, hidden), row by
    row. final_norm: the multipliers of the last norm. modulations: multipliers of a row.
    quantize: how the inputs of the layers' products are quantized.
    """

    blocks: tuple[Block, ...]
    embed: Tensor
    embed_bias: Tensor
    shown: Tensor | None
    positions: Tensor
    side: int
    final: Tensor
    final_bias: Tensor
    final_norm: Modulated
    modulations: int
    heads: int
    head_dim: int
    scale: float
    eps: float
    quantize: Kind | None
    dtype: torch.dtype


def is_joint(file: GraphFile) -> bool:
    """Return whether a graph is an MM-DiT's denoiser with its weights in floats."""
    return {"latents", "text_source"} <= set(file.inputs) and "transformer_blocks.0.attn.to_q.bias" in file.weights


def read(
    file: GraphFile, depth: int, heads: int, precision: Precision, device: torch.device, impl: Impl
) -> JointWeights:
    """Read an MM-DiT's denoiser for a precision.

    Raises: BackendError if the graph has no weights of these names.
    """
    if not is_joint(file):
        raise BackendError(
            f"{file.path} is no MM-DiT's denoiser in fp32; export the checkpoint in fp32, or choose "
            "backend='onnxruntime'"
        )
    reader = Reader(file, precision, device, impl)
    place = count()  # of the next multiplier in a row
    blocks = tuple(_block(reader, file, f"transformer_blocks.{index}", place) for index in range(depth))
    final_norm = Modulated(multiplier=next(place), shift=next(place))
    embed = reader.tensor(file.node_of("MatMul", "latents").inputs[1]).T.contiguous()
    shown = None
    if "conditions" in file.inputs:
        shown = reader.tensor(file.node_of("MatMul", "conditions").inputs[1]).T.contiguous()
    positions = reader.tensor(next(name for name in sorted(file.weights) if name.startswith("pos_embed.pos_embed")))
    return JointWeights(
        blocks=blocks,
        embed=embed,
        embed_bias=reader.tensor("pos_embed.proj.bias"),
        shown=shown,
        positions=positions,
        side=math.isqrt(len(positions)),
        final=reader.linear("proj_out"),
        final_bias=reader.tensor("proj_out.bias"),
        final_norm=final_norm,
        modulations=next(place),
        heads=heads,
        head_dim=len(embed) // heads,
        scale=float(_first(file, "framert.FrameAttention", "scale")),
        eps=float(_first(file, "LayerNormalization", "epsilon")),  # of every norm of the family
        quantize=reader.kind,
        dtype=reader.dtype,
    )


def _block(reader: Reader, file: GraphFile, name: str, place: Iterator[int]) -> Block:
    last = f"{name}.attn.to_add_out.bias" not in file.weights
    dual = f"{name}.attn2.to_q.bias" in file.weights
    image, image_fed = _branch(place), _branch(place)
    image_second = _branch(place) if dual else None
    if last:  # another norm of the checkpoint, which gives its scale first
        text, text_fed = Modulated(multiplier=next(place), shift=next(place)), None
    else:
        text, text_fed = _branch(place), _branch(place)
    return Block(
        attention=_attention(reader, file, f"{name}.attn", text=True, last=last),
        second=_attention(reader, file, f"{name}.attn2", text=False, last=last) if dual else None,
        image_feed=_feed(reader, f"{name}.ff"),
        text_feed=None if last else _feed(reader, f"{name}.ff_context"),
        image=image,
        image_fed=image_fed,
        image_second=image_second,
        text=text,
        text_fed=text_fed,
    )


def _branch(place: Iterator[int]) -> Modulated:
    """Return the next branch's multipliers, which lie as shift, scale and gate."""
    shift, multiplier, gate = next(place), next(place), next(place)
    return Modulated(multiplier=multiplier, shift=shift, gate=gate)


def _attention(reader: Reader, file: GraphFile, name: str, *, text: bool, last: bool) -> Attention:
    added = [f"{name}.add_{part}_proj" for part in ("kv" if last else "qkv")]
    return Attention(
        image=reader.project([f"{name}.to_{part}" for part in "qkv"], biased=True),
        image_out=reader.project([f"{name}.to_out.0"], biased=True),
        text=reader.project(added, biased=True) if text else None,
        text_out=reader.project([f"{name}.to_add_out"], biased=True) if text and not last else None,
        norms=_norms(reader, file, name),
    )


def _norms(reader: Reader, file: GraphFile, name: str) -> Tensor | None:
    if f"{name}.norm_q.weight" not in file.weights:
        return None
    names = [f"{name}.norm_{part}.weight" for part in ("q", "k", "added_q", "added_k")]
    own = reader.tensor(names[0])
    return torch.stack([reader.tensor(one) if one in file.weights else torch.ones_like(own) for one in names])


def _feed(reader: Reader, name: str) -> FeedForward:
    return FeedForward(
        up=reader.project([f"{name}.net.0.proj"], biased=True), down=reader.project([f"{name}.net.2"], biased=True)
    )


def _first(file: GraphFile, op: str, attribute: str) -> float:
    """Return an attribute that all nodes of one type share."""
    found: float = next(node for node in file.nodes if node.op == op).attributes[attribute]
    return found
