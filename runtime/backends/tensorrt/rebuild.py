"""The command that builds a bundle of engines again: as it was built, for another GPU, or for larger sizes."""

import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from framert.runtime.backends.tensorrt.library import LIBRARY
from framert.runtime.bundle import Bundle
from framert.runtime.manifest import PRECISION_WORDS
from framert.runtime.profiles import MAX_PROFILES, Capacity

# Axis that was too short -> the option of `framert build` that is made larger, and how much of it one unit takes.
OPTIONS: dict[str, tuple[str, Callable[[Bundle], int]]] = {
    "tokens": ("tokens", lambda _: 1),
    "longest": ("tokens", lambda _: 2),  # a profile takes sequences of half its tokens
    "sequences": ("sequences", lambda _: 1),
    "frames": ("frames", lambda _: 1),
    "rows": ("rows", lambda _: 1),
    "capacity": ("text", lambda _: 1),
    "height": ("side", lambda _: 1),
    "width": ("side", lambda _: 1),
    "latent_height": ("side", lambda bundle: bundle.manifest.model.vae_factor),
    "latent_width": ("side", lambda bundle: bundle.manifest.model.vae_factor),
}


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
        option, factor = OPTIONS[axis]
        wanted = size * factor(bundle)
        if option == "side":
            wanted = -(-wanted // bundle.manifest.model.multiple) * bundle.manifest.model.multiple
        if option == "tokens":
            native = (bundle.manifest.native_side // bundle.manifest.model.multiple) ** 2
            buckets = sizes.get("tokens") or [times * native for times in (2, 4, 16)]
            sizes["tokens"] = sorted({*buckets, wanted})[1 - MAX_PROFILES :]  # and one for many sequences
        else:
            sizes[option] = wanted
    tokens = sizes.pop("tokens", None)
    words = {"tokens": ",".join(map(str, tokens))} if tokens else {}
    return words | {name: str(value) for name, value in sizes.items()}
