"""The command that builds a bundle of engines again: as it was built, for another GPU, or for larger sizes."""

import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from framert.runtime.backends.tensorrt.library import LIBRARY
from framert.runtime.bundle import Bundle
from framert.runtime.manifest import PRECISION_WORDS, Manifest
from framert.runtime.profiles import MAX_PROFILES, Capacity
from framert.runtime.sizes import carries_text, guided_sequences, text_length, usual_buckets

# Axis that was too short -> the option of `framert build` that is made larger, and how large for a size of the axis.
OPTIONS: dict[str, tuple[str, Callable[[Manifest, int], int]]] = {
    "tokens": ("tokens", lambda _, size: size),
    "longest": ("tokens", lambda manifest, size: bucket_of(manifest, size)),
    "sequences": ("sequences", lambda _, size: size),
    "text_tokens": ("sequences", lambda manifest, size: -(-size // text_length(manifest))),
    "frames": ("frames", lambda _, size: size),
    "rows": ("rows", lambda _, size: size),
    "capacity": ("text", lambda _, size: size),
    "height": ("side", lambda _, size: size),
    "width": ("side", lambda _, size: size),
    "latent_height": ("side", lambda manifest, size: size * manifest.model.vae_factor),
    "latent_width": ("side", lambda manifest, size: size * manifest.model.vae_factor),
}


def bucket_of(manifest: Manifest, longest: int) -> int:
    """Return the bucket whose profile takes sequences of so many tokens: each has its part of it, and its text."""
    own = longest - (text_length(manifest) if carries_text(manifest) else 0)
    return guided_sequences(manifest) * max(1, own)


def rebuild_command(bundle: Bundle, *, target: str | None = None, axis: str = "", size: int = 0) -> str:
    """Return in words how a bundle's engines are built again.

    Args:
        target: for another GPU than now. axis, size: for a call that is so long there.
    """
    manifest = bundle.manifest
    built = how_built(bundle)
    words = ["framert", "build", "ONNX_BUNDLE", "-o", str(bundle.path), "--force"]
    words += ["--backend", manifest.target.get("kind", "tensorrt")]
    for name in [target] if target else manifest.target.get("compute_capability", "").split(","):
        words += ["--target", name]
    precisions = [PRECISION_WORDS.get(graph.precision) for graph in manifest.graphs.values()]
    words += next((["--precision", half] for half in precisions if half in ("fp16", "bf16")), [])
    for option, value in _sizes(bundle, axis, size).items():
        words += [f"--{option.replace('_', '-')}", value]
    if attention := manifest.target.get("attention", "plugin" if "plugins" in manifest.target else ""):
        words += ["--attention", attention]
        words += ["--plugin-library", LIBRARY] if attention == "library" else []
    if built.get("weight_streaming"):
        words += ["--weight-streaming"]
    if built.get("compatible", "none") != "none":
        words += ["--compatible", str(built["compatible"])]
    return f"build it again from the exported bundle: {shlex.join(words)}"


def how_built(bundle: Bundle) -> dict[str, Any]:
    """Return what the manifest says of how engines were built."""
    built = bundle.manifest.provenance.get("built")
    return built if isinstance(built, dict) else {}


def _sizes(bundle: Bundle, axis: str, size: int) -> dict[str, str]:
    """Return the sizes to build for, by option: those that are not the default, one of them made larger."""
    capacity, usual = how_built(bundle).get("capacity", {}), asdict(Capacity())
    sizes = {name: value for name, value in capacity.items() if name in usual and value not in (None, usual[name])}
    if axis in OPTIONS:
        option, needed = OPTIONS[axis]
        wanted = needed(bundle.manifest, size)
        if option == "side":
            wanted = -(-wanted // bundle.manifest.model.multiple) * bundle.manifest.model.multiple
        if option == "tokens":
            buckets = sizes.get("tokens") or usual_buckets(bundle.manifest)
            sizes["tokens"] = sorted({*buckets, wanted})[1 - MAX_PROFILES :]  # and one for many sequences
        else:
            sizes[option] = wanted
    tokens = sizes.pop("tokens", None)
    words = {"tokens": ",".join(map(str, tokens))} if tokens else {}
    return words | {name: str(value) for name, value in sizes.items()}
