"""Sizes that kernels are specialized on, from a bundle: its manifest, and its denoiser's graph for the rest."""

import os
import re
from pathlib import Path

import onnx

from framert.kernels.specialization import ModelShape
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BundleError


def model_shape(bundle: Bundle | str | os.PathLike[str]) -> ModelShape:
    """Return the shape of a bundle's transformer, named after its checkpoint.

    The graph is read without its weights. The manifest does not say how wide the feed-forward layers are, nor the
    epsilon of the norms.

    Raises: BundleError if the bundle is missing or damaged, or its denoiser has no such layers.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    model, file = opened.manifest.model, opened.graph_path("denoiser")
    graph = onnx.load(file, load_external_data=False).graph
    name = str(opened.manifest.provenance.get("checkpoint", "")) or opened.path.name.removesuffix(".bundle")
    return ModelShape(
        name=re.sub(r"[^a-z0-9]+", "_", Path(name).name.lower()).strip("_") or "bundle",
        hidden=model.hidden_size,
        depth=model.depth,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn=_ffn(graph, model.hidden_size, file),
        token_width=model.token_width,
        softcap=model.softcap,
        guidance_branches=opened.manifest.guidance_branches,
        norm_eps=_norm_eps(graph, file),
    )


def _is_entry(name: str) -> bool:
    """Say whether a weight is that of the product that enters a feed-forward layer, of any family."""
    return "feed_forward.w1" in name or "ff.net.0.proj.weight" in name


def _ffn(graph: onnx.GraphProto, hidden: int, file: Path) -> int:
    """Return the columns of the first gate: from the weight, or from the node where the weight is packed."""
    for initializer in graph.initializer:
        if not _is_entry(initializer.name) or len(initializer.dims) != 2:
            continue
        rows, columns = initializer.dims
        if initializer.name.endswith("_values"):  # quantized, as (in, out); blocks may have widened the input
            return int(columns)
        if hidden in initializer.dims:
            return int(columns if rows == hidden else rows)
    for node in graph.node:
        if node.op_type == "MatMulNBits" and any(map(_is_entry, node.input)):
            return next(int(attribute.i) for attribute in node.attribute if attribute.name == "N")
    raise BundleError(f"{file} has no feed-forward layer; export the checkpoint again")


def _norm_eps(graph: onnx.GraphProto, file: Path) -> float:
    """Return the epsilon of the norms that enter a layer: RMS norms, or layer norms where there are no others."""
    for kinds in (("RMSNormalization", "SimplifiedLayerNormalization"), ("LayerNormalization",)):
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type in kinds and attribute.name == "epsilon":
                    return float(f"{attribute.f:.6g}")  # kept in fp32 there: 1e-05, not 9.99999974e-06
    raise BundleError(f"{file} has no norm; export the checkpoint again")
