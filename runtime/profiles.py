"""Optimization profiles: the sizes an engine is built for, from buckets of tokens and capacities of arenas.

Here and not beside the builder, because ONNX Runtime's TensorRT provider builds its engines when they run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Manifest, ModelSpec, TensorSpec
from framert.runtime.windows import WINDOWS

Sizes = tuple[int, int, int]  # least, best, most
Profile = Mapping[str, Sizes]  # of each free axis

MAX_PROFILES = 6  # of one engine: each has its own activation memory and, in the runtime, its own CUDA graphs
MANY_PART = 4  # of many sequences each takes at most this part of a bucket
FEW, LOGIT_BYTES = 3, 8  # sequences of a guided request and padding; a logit in fp32, before and after the softmax
LARGEST_SIDE = 1024  # pixels: pictures above are decoded in tiles of this size


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Largest sizes of a bundle's engines.

    Args:
        tokens: buckets of model tokens per denoiser call, guidance branches counted; None takes 2, 4 and 16 times a
            native picture's, those of them whose attention fits.
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
    model = manifest.model
    side = _side(capacity, manifest)
    length = (1, min(32, manifest.prompt_tokens), manifest.prompt_tokens)
    if capacity.text < manifest.prompt_tokens:
        raise ConfigError(f"text is {capacity.text}, less than one prompt's {manifest.prompt_tokens} tokens; give more")
    native = min(manifest.native_side, side)
    pixels = (model.multiple, native, side)
    latents = (model.patch, native // model.vae_factor, side // model.vae_factor)
    denoiser = _denoiser(manifest, capacity, plugin=plugin)
    return {
        "text_encoder": [{"length": length}],
        "vae_encoder": [{"height": pixels, "width": pixels}],
        "conditioner": [{"length": length, "rows": (1, min(50, capacity.rows), capacity.rows)}],
        "denoiser": denoiser,
        "vae_decoder": [{"latent_height": latents, "latent_width": latents}],
    }


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
    return {
        word: ",".join(f"{name}:{'x'.join(str(side) for side in sizes[number])}" for name, sizes in table.items())
        for number, word in enumerate(("min", "opt", "max"))
    }


def logit_bytes(model: ModelSpec, profile: Profile) -> int:
    """Return the bytes of one padded attention's logits at the largest sizes of a profile."""
    longest, text = (profile[axis][2] for axis in WINDOWS.values())
    return LOGIT_BYTES * profile["sequences"][2] * model.heads * longest * max(longest, text)


def _denoiser(manifest: Manifest, capacity: Capacity, *, plugin: bool) -> list[Profile]:
    """Return the profiles of all buckets.

    Padded attention costs sequences times the longest squared, so without a plugin a bucket is for few sequences up to
    half of it, as guidance makes them, and one more profile takes many short ones.
    """
    native = (manifest.native_side // manifest.model.multiple) ** 2
    buckets = list(capacity.tokens or (times * native for times in (2, 4, 16)))
    few = min(FEW, capacity.sequences)
    if plugin:
        profiles = [_common(bucket, capacity.sequences, capacity) for bucket in buckets]
    else:
        profiles = [_padded(bucket, few, bucket // 2, manifest, capacity) for bucket in buckets]
        while capacity.tokens is None and len(profiles) > 1 and _over(manifest, profiles[-1], capacity):
            profiles.pop()
        largest = profiles[-1]["tokens"][2]
        if capacity.sequences > few:
            profiles.append(_padded(largest, capacity.sequences, max(1, largest // MANY_PART), manifest, capacity))
        for profile in profiles:
            if _over(manifest, profile, capacity):
                raise ConfigError(
                    f"{profile['tokens'][2]} tokens do not fit without a plugin: the logits of "
                    f"{profile['sequences'][2]} sequences of {profile['longest'][2]} tokens take "
                    f"{logit_bytes(manifest.model, profile) / 2**30:.3g} GiB, and {capacity.attention_gib:g} GiB are "
                    "allowed; give fewer tokens or sequences, or allow more"
                )
    if len(profiles) > MAX_PROFILES:
        raise ConfigError(
            f"{len(buckets)} token buckets make {len(profiles)} profiles, and {MAX_PROFILES} are allowed; give fewer"
        )
    return profiles


def _common(tokens: int, sequences: int, capacity: Capacity) -> Profile:
    frames, sequences = min(capacity.frames, tokens), min(sequences, tokens)
    return {
        "tokens": (1, tokens, tokens),
        "slots": (1, tokens // 2, tokens),
        "frames": (1, min(4, frames), frames),
        "rows": (1, min(128, capacity.rows), capacity.rows),
        "capacity": (1, min(1024, capacity.text), capacity.text),
        "sequences": (1, min(2, sequences) if sequences <= FEW else sequences, sequences),
    }


def _over(manifest: Manifest, profile: Profile, capacity: Capacity) -> bool:
    return logit_bytes(manifest.model, profile) > capacity.attention_gib * 2**30


def _padded(tokens: int, sequences: int, longest: int, manifest: Manifest, capacity: Capacity) -> Profile:
    prompt = manifest.prompt_tokens
    return {
        **_common(tokens, sequences, capacity),
        "longest": (1, longest, longest),
        "text_longest": (1, min(64, prompt), prompt),
    }


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
