"""Optimization profiles: the sizes an engine is built for, from buckets of tokens and capacities of arenas.

Here and not beside the builder, because ONNX Runtime's TensorRT provider builds its engines when they run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Manifest, ModelSpec, TensorSpec
from framert.runtime.sizes import carries_text, free_axes, guided_sequences, text_length, usual_buckets
from framert.runtime.windows import WINDOWS

Sizes = tuple[int, int, int]  # least, best, most
Profile = Mapping[str, Sizes]  # of each free axis

MAX_PROFILES = 6  # of one engine: each has its own activation memory and, in the runtime, its own CUDA graphs
MANY_PART = 4  # of many sequences each takes at most this part of a bucket
LOGIT_BYTES = 8  # a logit in fp32, before and after the softmax
USUAL_TEXT, FEATURES = 64, 8  # text tokens of a usual prompt; pictures that the longest prompt refers to
LARGEST_SIDE = 1024  # pixels: pictures above are decoded in tiles of this size


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Largest sizes of a bundle's engines.

    Args:
        tokens: buckets of model tokens per denoiser call, guidance branches counted; None takes those of one,
            two and eight guided native pictures, as far as their attention fits.
        sequences, frames: most in one call. rows, text: modulation rows and text tokens of the arenas.
        side: largest picture side of one autoencoder call in pixels; None is 1024, or the model's own limit below it.
        attention_gib: without a plugin, memory that the logits of one attention may take.
    """

    tokens: tuple[int, ...] | None = None
    sequences: int = 8
    frames: int = 64
    rows: int = 4096
    text: int = 8192
    side: int | None = None
    attention_gib: float = 4.0

    def __post_init__(self) -> None:
        for name in ("sequences", "frames", "rows", "text"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1")
        if not 0 < self.attention_gib < float("inf"):
            raise ConfigError(f"attention_gib is {self.attention_gib!r}; give a positive number of GiB")
        for bucket in self.tokens if self.tokens is not None else (2,):
            if isinstance(bucket, bool) or not isinstance(bucket, int) or bucket < 2:
                raise ConfigError(f"a token bucket is {bucket!r}; give whole numbers of at least 2")
        if self.tokens is not None and (not self.tokens or list(self.tokens) != sorted(set(self.tokens))):
            raise ConfigError(f"token buckets are {self.tokens}; give at least one, each larger than the one before")


def plan_profiles(manifest: Manifest, capacity: Capacity, *, plugin: bool) -> dict[str, list[Profile]]:
    """Return the profiles of every graph.

    Args:
        plugin: attention is a plugin's, which keeps no logits and has no windows.
    Raises: ConfigError for sizes that the model, or without a plugin the memory for logits, has no room for.
    """
    model, text = manifest.model, text_length(manifest)
    side = _side(capacity, manifest)
    if capacity.text < text:
        raise ConfigError(f"text is {capacity.text}, less than one prompt's {text} tokens; give more")
    native = min(manifest.native_side, side)
    pixels = (model.multiple, native, side)
    latents = (model.patch, native // model.vae_factor, side // model.vae_factor)
    common = {
        "height": pixels,
        "width": pixels,
        "latent_height": latents,
        "latent_width": latents,
        "rows": (1, min(50, capacity.rows), capacity.rows),
        "features": (0, 1, FEATURES),
    }
    longest = {"text_encoder": manifest.prompt_tokens, "conditioner": text}
    table: dict[str, list[Profile]] = {}
    for name, graph in manifest.graphs.items():
        if name == "denoiser":
            table[name] = _denoiser(manifest, capacity, plugin=plugin)
            continue
        most = longest.get(name, 1)
        sizes = common | {"length": (1, min(32, most), most)}
        table[name] = [{axis: sizes[axis] for axis in free_axes(graph.inputs)}]
    return table


def shapes(inputs: Mapping[str, TensorSpec], profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return least, best and most shape of every input with a free axis."""
    free = {name: spec for name, spec in inputs.items() if any(isinstance(side, str) for side in spec.shape)}
    return {
        name: tuple(tuple(profile[side][k] if isinstance(side, str) else side for side in spec.shape) for k in range(3))
        for name, spec in free.items()
    }


def single_profile(manifest: Manifest, graph: str, capacity: Capacity) -> Profile:
    """Return the profile of a graph for builders that take only one: that of the longest sequences."""
    table = plan_profiles(manifest, capacity, plugin=False)[graph]
    return max(table, key=lambda profile: profile["longest"][2] if "longest" in profile else 0)


def written(inputs: Mapping[str, TensorSpec], profile: Profile) -> dict[str, str]:
    """Return a profile's least ("min"), best ("opt") and most ("max") shapes as trtexec reads them: ``a:1x16,b:4``."""
    table = shapes(inputs, profile)
    if not table:
        return {}
    return {
        word: ",".join(f"{name}:{'x'.join(str(side) for side in sizes[number])}" for name, sizes in table.items())
        for number, word in enumerate(("min", "opt", "max"))
    }


def logit_bytes(model: ModelSpec, profile: Profile) -> int:
    """Return the bytes of one padded attention's logits at the largest sizes of a profile."""
    longest, text = (profile[axis][2] if axis in profile else 0 for axis in WINDOWS.values())
    return LOGIT_BYTES * profile["sequences"][2] * model.heads * longest * max(longest, text)


def _denoiser(manifest: Manifest, capacity: Capacity, *, plugin: bool) -> list[Profile]:
    """Return the profiles of all buckets.

    Padded attention costs sequences times the longest squared, so without a plugin a bucket is for few sequences up to
    their part of it, as guidance makes them, and one more profile takes many short ones.
    """
    buckets, guided = list(capacity.tokens or usual_buckets(manifest)), guided_sequences(manifest)
    few = min(guided + 1, capacity.sequences)  # and padding
    if plugin:
        profiles = [_common(bucket, capacity.sequences, manifest, capacity) for bucket in buckets]
    else:
        profiles = [_padded(bucket, few, max(1, bucket // guided), manifest, capacity) for bucket in buckets]
        while capacity.tokens is None and len(profiles) > 1 and _over(manifest, profiles[-1], capacity):
            profiles.pop()
        largest = profiles[-1]["tokens"][2]
        if capacity.sequences > few:
            profiles.append(_padded(largest, capacity.sequences, max(1, largest // MANY_PART), manifest, capacity))
        for profile in profiles:
            if _over(manifest, profile, capacity):
                gib = logit_bytes(manifest.model, profile) / 2**30
                raise ConfigError(
                    f"{profile['tokens'][2]} tokens do not fit without a plugin: the logits of "
                    f"{profile['sequences'][2]} sequences of {profile['longest'][2]} tokens take {gib:.3g} GiB, and "
                    f"{capacity.attention_gib:g} GiB are allowed; give fewer tokens or sequences, or allow more "
                    f"(--attention-gib {math.ceil(gib)})"
                )
    if len(profiles) > MAX_PROFILES:
        raise ConfigError(
            f"{len(buckets)} token buckets make {len(profiles)} profiles, and {MAX_PROFILES} are allowed; give fewer"
        )
    return profiles


def _common(tokens: int, sequences: int, manifest: Manifest, capacity: Capacity) -> Profile:
    frames, sequences = min(capacity.frames, tokens), min(sequences, tokens)
    usual = min(2, sequences) if sequences <= guided_sequences(manifest) + 1 else sequences
    profile = {
        "tokens": (1, tokens, tokens),
        "slots": (1, tokens // 2, tokens),
        "frames": (1, min(4, frames), frames),
        "rows": (1, min(128, capacity.rows), capacity.rows),
        "capacity": (1, min(1024, capacity.text), capacity.text),
        "sequences": (1, usual, sequences),
    }
    if carries_text(manifest):  # as much as the longest prompts of all sequences: it is never what a call fails of
        text = text_length(manifest)
        profile["text_tokens"] = (1, usual * min(USUAL_TEXT, text), sequences * text)
    if manifest.model.condition_channels:
        profile["condition_rows"] = (1, 1 + tokens // 2, 1 + tokens)
    return profile


def _over(manifest: Manifest, profile: Profile, capacity: Capacity) -> bool:
    return logit_bytes(manifest.model, profile) > capacity.attention_gib * 2**30


def _padded(tokens: int, sequences: int, longest: int, manifest: Manifest, capacity: Capacity) -> Profile:
    """Return a profile with windows. longest: model tokens of a sequence, to which its text comes if it carries one."""
    common, text = _common(tokens, sequences, manifest, capacity), text_length(manifest)
    if carries_text(manifest):
        return {**common, "longest": (1, longest + min(USUAL_TEXT, text), longest + text)}
    return {**common, "longest": (1, longest, longest), "text_longest": (1, min(USUAL_TEXT, text), text)}


def _side(capacity: Capacity, manifest: Manifest) -> int:
    model = manifest.model
    side = capacity.side
    if side is None:
        return min(model.max_side, LARGEST_SIDE // model.multiple * model.multiple)
    if isinstance(side, bool) or not isinstance(side, int) or side < model.multiple or side % model.multiple:
        raise ConfigError(f"side is {side!r}; give a multiple of {model.multiple} pixels")
    if side > model.max_side:
        raise ConfigError(f"side is {side} pixels; this bundle's model ends at {model.max_side}")
    return side


def to_json(profiles: Mapping[str, Sequence[Profile]]) -> dict[str, list[dict[str, list[int]]]]:
    """Return the profile table as profiles.json holds it: graph -> profiles, each axis -> [least, best, most]."""
    return {
        graph: [{axis: list(sizes) for axis, sizes in profile.items()} for profile in table]
        for graph, table in profiles.items()
    }
