"""One raw denoiser call on latents and hidden states given by the caller, for verification."""

from dataclasses import dataclass

import numpy as np

from framert.runtime import tables
from framert.runtime.arrays import Array, Floats
from framert.runtime.backends.base import Backend, text_arenas
from framert.runtime.components import Components
from framert.runtime.errors import ShapeError
from framert.runtime.families import find_family
from framert.runtime.manifest import Manifest
from framert.runtime.patches import to_frames, to_tokens


@dataclass(frozen=True, slots=True)
class _Member:
    frames: int
    height: int
    width: int
    branches: tuple[tables.BranchRows, ...]
    conditions: Floats | None = None


def velocity(
    backend: Backend,
    components: Components,
    manifest: Manifest,
    samples: Floats,
    timesteps: Floats,
    text: Floats,
    text_mask: Array,
    pooled: Floats | None = None,
    conditions: Floats | None = None,
) -> Floats:
    """Return the velocity (batch, frames, channels, h, w); see ``Pipeline.velocity``. All samples share one call."""
    _check(samples, timesteps, text, text_mask, manifest)
    model, layout = manifest.model, find_family(manifest.family).layout(manifest)
    pooled = _optional("pooled", pooled, (len(samples), model.pooled_width))
    if pooled is None:
        pooled = np.zeros((len(samples), model.pooled_width), np.float32)
    conditions = _optional("conditions", conditions, (len(samples), model.condition_channels, *samples.shape[3:]))
    batch, frames, _, height, width = samples.shape
    denoiser = backend.denoiser()
    denoiser.reserve(text=int(text_mask.astype(bool).sum()), rows=batch * frames)
    members: list[_Member] = []
    begin = 0
    for index in range(batch):
        shown = None if conditions is None else to_tokens(conditions[index][None], model.patch)
        hidden = np.ascontiguousarray(text[index][text_mask[index].astype(bool)], np.float32)
        made = components.condition({"hidden_states": hidden, "pooled": pooled[index]}, timesteps.tolist(), {})
        denoiser.write_text(begin, *(made[name] for name in text_arenas(manifest)))
        denoiser.write_modulation(index * frames, made["modulation"])
        branch = tables.BranchRows(begin, len(hidden), index * frames, 1.0, picture=shown is not None)
        members.append(_Member(frames, height // model.patch, width // model.patch, (branch,), shown))
        begin += len(hidden)
    tokens = np.concatenate([to_tokens(sample.astype(np.float32), model.patch) for sample in samples])
    count = sum(tables.token_count(member) for member in members)
    packed = tables.build(
        members, guidance_branches=manifest.guidance_branches, tokens=denoiser.padded(count), layout=layout
    )
    denoiser.bind(packed, tokens, np.zeros_like(tokens))
    row = np.zeros(packed.frames, np.int32)
    row[: batch * frames] = np.arange(batch * frames)
    denoiser.step(row, np.zeros((len(tokens), 6), np.float32))
    parts = np.split(denoiser.velocity(), batch)
    return np.stack([to_frames(part, model.patch, samples.shape[1:]) for part in parts])


def _check(samples: Array, timesteps: Array, text: Array, text_mask: Array, manifest: Manifest) -> None:
    model = manifest.model
    if samples.ndim != 5 or samples.shape[2] != model.latent_channels:
        raise ShapeError(f"samples has shape {samples.shape}; give (batch, frames, {model.latent_channels}, h, w)")
    batch, frames, _, height, width = samples.shape
    if height % model.patch or width % model.patch or not samples.size:
        raise ShapeError(f"samples is {height}x{width}; both must be multiples of {model.patch}, and none empty")
    if frames > model.max_frames or max(height, width) > model.max_positions * model.patch:
        raise ShapeError(
            f"samples has {frames} frames of {height}x{width}; at most {model.max_frames} frames and "
            f"{model.max_positions * model.patch} latent pixels a side"
        )
    if timesteps.shape != (frames,):
        raise ShapeError(f"timesteps has shape {timesteps.shape}; give one per frame, ({frames},)")
    if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != model.text_width:
        raise ShapeError(f"text has shape {text.shape}; give ({batch}, length, {model.text_width})")
    if text_mask.shape != text.shape[:2]:
        raise ShapeError(f"text_mask has shape {text_mask.shape}; give {text.shape[:2]}")
    for name, values in (("samples", samples), ("timesteps", timesteps), ("text", text)):
        if not np.isfinite(np.asarray(values, np.float32)).all():
            raise ShapeError(f"{name} holds NaN or infinity; check where it was made")
    if not text_mask.astype(bool).any(axis=1).all():
        raise ShapeError("text_mask leaves a sample without any text; even an empty prompt has its end token")


def _optional(name: str, values: Floats | None, shape: tuple[int, ...]) -> Floats | None:
    """Return what was given, if the model has a place for it. Raises: ShapeError."""
    if values is None:
        return None
    if not shape[1]:
        raise ShapeError(f"{name} was given, and this model has no place for it; leave it out")
    if values.shape != shape:
        raise ShapeError(f"{name} has shape {values.shape}; give {shape}")
    if not np.isfinite(values).all():
        raise ShapeError(f"{name} holds NaN or infinity; check where it was made")
    return values
