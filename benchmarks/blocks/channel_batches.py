"""Batches for UniVG on Blocks: noised latents, what is shown beside them on channels, noise levels and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batches import LOGIT, tokens_of
from channel_frames import FRAME_NAMES
from channel_samples import Sample, draw_sample
from frames import Story
from numpy.typing import NDArray
from torch import Tensor

from framert.runtime.families.univg.family import painted

PICTURE_DROPOUT = 0.05  # neither picture nor prompt: the branch v(0, 0) of dual guidance
PROMPT_DROPOUT = 0.10  # the picture without its prompt: the branch v(V, 0)


@dataclass(frozen=True, slots=True)
class ChannelBatch:
    """samples, target: (batch, tokens, width); levels: (batch,) in 0..1000; conditions: (batch, tokens, condition
    width), latent and mask of each token; features: (batch, references, text width), what the prompt's placeholders
    stand for; prompts and tasks, one per sequence."""

    samples: Tensor
    target: Tensor
    levels: Tensor
    conditions: Tensor
    features: Tensor
    prompts: list[str]
    tasks: list[str]

    def parts(self, count: int) -> "list[ChannelBatch]":
        """Return ``count`` batches of a share of the sequences each; fewer where there are fewer sequences."""
        length = -(-len(self.tasks) // count)
        cuts = [slice(at, at + length) for at in range(0, len(self.tasks), length)]
        return [
            ChannelBatch(*(tensor[cut] for tensor in self.tensors), self.prompts[cut], self.tasks[cut]) for cut in cuts
        ]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the loss needs, in its order."""
        return self.samples, self.target, self.levels, self.conditions, self.features


class ChannelBatchMaker:
    """Draws batches from the encoded scenes; one random stream, so a seed repeats a run."""

    def __init__(
        self,
        latents: NDArray[np.float16],
        features: NDArray[np.float16],
        stories: Sequence[Story],
        tokens_per_step: int,
        patch: int,
        side: int,
        seed: int,
    ) -> None:
        """Of ``stories``: latents (scenes, frames of FRAME_NAMES, channels, h, w) and features (scenes, references,
        text width); side: of the pictures, in pixels."""
        self.latents, self.features, self.stories, self.patch, self.side = latents, features, stories, patch, side
        self.sequences = max(1, tokens_per_step // (latents.shape[-1] // patch) ** 2)
        self.random = np.random.default_rng(seed)

    def draw(self) -> ChannelBatch:
        """Return a batch; all its sequences are one picture long."""
        drawn = [self._sample() for _ in range(self.sequences)]
        clean = torch.from_numpy(np.stack([tokens_of(self._latent(scene, each.target), self.patch)
                                           for scene, each in drawn]))  # fmt: skip
        dropped = self.random.random(len(drawn))
        shown = [each if chance >= PICTURE_DROPOUT else None for (_, each), chance in zip(drawn, dropped, strict=True)]
        conditions = np.stack([self.condition(scene, each) for (scene, _), each in zip(drawn, shown, strict=True)])
        prompts = ["" if chance < PICTURE_DROPOUT + PROMPT_DROPOUT else each.prompt
                   for (_, each), chance in zip(drawn, dropped, strict=True)]  # fmt: skip
        sigma = 1 / (1 + np.exp(-self.random.normal(*LOGIT, len(drawn)).astype(np.float32)))
        noise = torch.from_numpy(self.random.standard_normal(clean.shape, np.float32))
        levels = torch.from_numpy(sigma)
        mixed = torch.lerp(clean, noise, levels[:, None, None])
        tasks = [each.task for _, each in drawn]
        features = torch.from_numpy(np.stack([self.features[scene] for scene, _ in drawn])).float()
        shows = torch.from_numpy(conditions)
        return ChannelBatch(mixed, noise - clean, 1000 * levels, shows, features, prompts, tasks)

    def condition(self, scene: int, sample: Sample | None) -> NDArray[np.float32]:
        """Return (tokens, condition width) of what a sample shows; blank, latents of 0 and a mask of 1, for None."""
        height, width = self.latents.shape[-2:]
        if sample is None or not sample.shown:
            latent, mask = np.zeros(self.latents.shape[2:], np.float32), np.ones((height, width), np.float32)
        else:
            latent = self._latent(scene, sample.shown)
            mask = painted(sample.painted, (self.side, self.side), (height, width))
        return tokens_of(np.concatenate([latent, mask[None]]), self.patch)

    def _sample(self) -> tuple[int, Sample]:
        scene = int(self.random.integers(len(self.stories)))
        return scene, draw_sample(self.stories[scene], self.side, self.random)

    def _latent(self, scene: int, name: str) -> NDArray[np.float32]:
        return self.latents[scene, FRAME_NAMES.index(name)].astype(np.float32)
