"""What differs between the families that Blocks is trained for: presets, pictures, prompts, model and batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import channel_samples
import channel_transformer
import numpy as np
import samples
import transformer
from batches import BatchMaker
from channel_batches import ChannelBatchMaker
from channel_frames import FRAME_NAMES as CHANNEL_NAMES
from channel_frames import render_channels
from dataset import FRAMES, Kind
from frames import Story
from loop import Maker
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sizes of one training run, for the kind of machine the preset is named after.

    The autoencoder's numbers are unused where a family takes a trained one.
    """

    side: int
    scenes: int
    hidden: int
    depth: int
    heads: int
    patch: int
    tokens_per_step: int
    rate: float
    steps: int
    kv_heads: int = 0
    vae_channels: tuple[int, ...] = ()
    vae_batch: int = 32
    vae_rate: float = 6e-4
    vae_steps: int = 0
    decoder_steps: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is trained on: of ``stories`` latents (scenes, frames, channels, h, w) and, where the family has an image
    encoder, features (scenes, references, text width)."""

    stories: Sequence[Story]
    latents: NDArray[np.float16]
    features: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One family. kind: the pictures it is trained on.

    weights: how often each task is drawn. emphasis: how much more than another's a task's loss counts.
    trains_autoencoder: whether it has one of its own; else ``vae/`` is copied from a trained checkpoint.
    image_encoder: whether pictures stand in its prompts. prompt: one that training may show, of a story.
    model: of a preset, untrained. maker: from what is trained on, preset, seed and step.
    loss_of: from model, trained text encoder, tokenizer, device and whether to compile.
    matrix: which parameters Muon takes.
    """

    presets: Mapping[str, Preset]
    weights: Mapping[str, float]
    emphasis: Mapping[str, float]
    kind: Kind
    trains_autoencoder: bool
    image_encoder: bool
    words: Callable[[], list[str]]
    prompt: Callable[[Story, Preset, np.random.Generator], str]
    model: Callable[[Preset], nn.Module]
    maker: Callable[[Encoded, Preset, int, int], Maker]
    loss_of: Callable[..., Callable[[Any], Tensor]]
    matrix: Callable[[str, Tensor], bool]


def _frames_model(preset: Preset) -> nn.Module:
    config = transformer.transformer_config(
        preset.hidden, preset.depth, preset.heads, preset.kv_heads, preset.patch, preset.side
    )
    return transformer.Blocks(config)


def _channels_model(preset: Preset) -> nn.Module:
    config = channel_transformer.transformer_config(
        preset.hidden, preset.depth, preset.heads, preset.patch, preset.side
    )
    return channel_transformer.ChannelBlocks(config)


def _channels_maker(encoded: Encoded, preset: Preset, seed: int, step: int) -> Maker:
    assert encoded.features is not None
    return ChannelBatchMaker(
        encoded.latents,
        encoded.features,
        encoded.stories,
        preset.tokens_per_step,
        preset.patch,
        preset.side,
        seed + step,
    )


RECIPES = {
    "onediffusion": Recipe(
        presets={
            "cpu": Preset(side=64, scenes=10000, vae_channels=(32, 64, 96, 128), vae_batch=32, vae_steps=2500,
                          hidden=288, depth=8, heads=6, kv_heads=2, patch=1, tokens_per_step=4608, rate=1.5e-3,
                          steps=22000),
            "gpu": Preset(side=128, scenes=30000, vae_channels=(64, 96, 160, 192), vae_batch=96, vae_steps=3000,
                          hidden=384, depth=12, heads=8, kv_heads=2, patch=2, tokens_per_step=32768, rate=1e-3,
                          steps=12000, decoder_steps=2000),
        },
        weights=samples.WEIGHTS,
        emphasis=samples.EMPHASIS,
        kind=FRAMES,
        trains_autoencoder=True,
        image_encoder=False,
        words=samples.words_of_prompts,
        prompt=lambda story, preset, random: samples.draw_sample(story, random).prompt,
        model=_frames_model,
        maker=lambda encoded, preset, seed, step: BatchMaker(
            encoded.latents, encoded.stories, preset.tokens_per_step, preset.patch, seed, step
        ),
        loss_of=transformer.loss_of,
        matrix=transformer.matrix,
    ),
    "univg": Recipe(
        presets={
            "cpu": Preset(side=64, scenes=5000, hidden=224, depth=6, heads=7, patch=1, tokens_per_step=4096,
                          rate=1.5e-3, steps=6000),
            "gpu": Preset(side=64, scenes=30000, hidden=256, depth=6, heads=8, patch=1, tokens_per_step=32768,
                          rate=1e-3, steps=20000),
        },
        weights=channel_samples.WEIGHTS,
        emphasis={},
        kind=Kind(CHANNEL_NAMES, render_channels, tag="channels"),
        trains_autoencoder=False,
        image_encoder=True,
        words=channel_samples.words_of_prompts,
        prompt=lambda story, preset, random: channel_samples.draw_sample(story, preset.side, random).prompt,
        model=_channels_model,
        maker=_channels_maker,
        loss_of=channel_transformer.loss_of,
        matrix=channel_transformer.matrix,
    ),
}  # fmt: skip
