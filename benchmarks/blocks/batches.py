"""Batches for the Blocks transformer: noised latents, noise levels, loss weights and prompts, equally long each."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from autoencoder import encode
from dataset import FRAME_NAMES
from diffusers import AutoencoderKL
from frames import Story
from numpy.typing import NDArray
from samples import Sample, draw_frames, draw_task, make_sample
from torch import Tensor
from tqdm import tqdm

from framert.runtime.cameras import Cameras

SCENES_AT_ONCE = 50
PROMPT_DROPOUT = 0.1
INFERENCE_SHARE = 0.9  # sequences noised as inference does it; in the others each frame has a level of its own
# Logits of noise levels: mean and deviation. One in six is above 0.9, as on the schedule: where words are obeyed.
LOGIT = (0.9, 1.3)


@dataclass(frozen=True, slots=True)
class Batch:
    """samples, target: (batch, frames, tokens, width); levels: (batch, frames) in 0..1000; weight: (batch, frames),
    1 where the loss counts; prompts and tasks, one per sequence."""

    samples: Tensor
    target: Tensor
    levels: Tensor
    weight: Tensor
    prompts: list[str]
    tasks: list[str]

    def parts(self, count: int) -> "list[Batch]":
        """Return ``count`` batches of a share of the sequences each; fewer where there are fewer sequences."""
        length = -(-len(self.tasks) // count)
        cuts = [slice(at, at + length) for at in range(0, len(self.tasks), length)]
        return [Batch(*(tensor[cut] for tensor in self.tensors), self.prompts[cut], self.tasks[cut]) for cut in cuts]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the loss needs, in its order."""
        return self.samples, self.target, self.levels, self.weight


def encode_all(
    vae: AutoencoderKL, pictures: NDArray[np.uint8], cache: Path, device: str, tag: str = "", threads: int = 1
) -> NDArray[np.float16]:
    """Return scaled latents (scenes, frames, 16, h / 8, w / 8), computed once per autoencoder and kept in ``cache``.

    Args:
        tag: what tells these pictures from others of the same number and size.
        threads: that encode scenes of their own. On a CPU each should compute alone (torch.set_num_threads(1)).
    """
    path = cache / f"latents-{pictures.shape[2]}px-{len(pictures)}{tag}-{_digest(vae)}.npy"
    if not path.exists():

        def chunk(at: int) -> NDArray[np.float16]:
            return encode(vae, np.concatenate(pictures[at : at + SCENES_AT_ONCE]), device).half().numpy()

        starts = range(0, len(pictures), SCENES_AT_ONCE)
        with ThreadPoolExecutor(threads) as pool:
            chunks = list(tqdm(pool.map(chunk, starts), desc="latents", total=len(starts), unit="chunk"))
        latents = np.concatenate(chunks).reshape(*pictures.shape[:2], *chunks[0].shape[1:])
        part = path.with_suffix(".part")  # so that an interrupted run leaves nothing that looks whole
        with part.open("wb") as stream:
            np.save(stream, latents)
        part.replace(path)
    return np.load(path)


def _digest(vae: AutoencoderKL) -> str:
    """Return what tells one encoder from another: its weights and scale, hashed. Decoders may learn on."""
    digest = hashlib.sha256(repr(float(vae.config.scaling_factor)).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith("decoder."):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokens_of(latents: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """Return (..., tokens, patch * patch * channels) of latents (..., channels, h, w), channels last in a token."""
    *lead, channels, height, width = latents.shape
    cut = latents.reshape(*lead, channels, height // patch, patch, width // patch, patch)
    axes = len(lead)
    order = [*range(axes), *(axes + each for each in (1, 3, 2, 4, 0))]
    return cut.transpose(order).reshape(*lead, height // patch * (width // patch), patch * patch * channels)


class BatchMaker:
    """Draws batches from the encoded scenes; one random stream, so a seed repeats a run."""

    def __init__(
        self,
        latents: NDArray[np.float16],
        stories: Sequence[Story],
        tokens_per_step: int,
        patch: int,
        seed: int,
        step: int = 0,
    ) -> None:
        """latents: (scenes, frames of FRAME_NAMES, channels, h, w) of ``stories``. step: that the next batch is for."""
        self.latents, self.tokens_per_step, self.patch = latents, tokens_per_step, patch
        self.stories = stories
        self.random, self.step = np.random.default_rng(seed + step), step

    def draw(self) -> Batch:
        """Return a batch of one sequence length, as often as the step draws it."""
        frames = draw_frames(self.random, self.step)
        self.step += 1
        tokens = (self.latents.shape[-1] // self.patch) ** 2
        drawn = [self._sample(frames) for _ in range(max(1, self.tokens_per_step // (frames * tokens)))]
        clean = np.stack([self._clean(scene, sample) for scene, sample in drawn])
        mask = np.array([sample.mask for _, sample in drawn])
        sigma, levels, weight = self._noise_levels(mask)
        clean_tensor = torch.from_numpy(clean)
        noise = torch.from_numpy(self.random.standard_normal(clean.shape, np.float32))
        mixed = torch.lerp(clean_tensor, noise, torch.from_numpy(sigma)[:, :, None, None])
        prompts = [sample.prompt if self.random.random() >= PROMPT_DROPOUT else "" for _, sample in drawn]
        tasks = [sample.task for _, sample in drawn]
        return Batch(
            mixed, noise - clean_tensor, torch.from_numpy(1000 * levels), torch.from_numpy(weight), prompts, tasks
        )

    def _sample(self, frames: int) -> tuple[int, Sample]:
        task = draw_task(frames, self.random)
        while True:
            scene = int(self.random.integers(len(self.stories)))
            sample = make_sample(task, frames, self.stories[scene], self.random)
            if len(sample.frames) == frames:  # identity needs as many things as references
                return scene, sample

    def _clean(self, scene: int, sample: Sample) -> NDArray[np.float32]:
        """Return the tokens (frames, tokens, width) of a sample without noise."""
        stack = np.empty((len(sample.frames), *self.latents.shape[2:]), np.float32)
        for index, name in enumerate(sample.frames):
            if name != "rays":
                stack[index] = self.latents[scene, FRAME_NAMES.index(name)]
        if sample.views:
            views = [self.stories[scene].views[view] for view in sample.views]
            cameras = Cameras.orbit(
                [view.azimuth for view in views], [view.elevation for view in views], [view.distance for view in views]
            )
            stack[1::2] = cameras.rays(self.latents.shape[-1])
        return tokens_of(stack, self.patch)

    def _noise_levels(self, mask: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        """Return (amount of noise, level told to the model, weight of the loss), each (batch, frames).

        As at inference, generated frames share a level and given frames are clean, yet told the small level at which
        a schedule ends; or every frame has a level of its own, and all count.
        """
        shape = mask.shape
        shared = _sigmoid(self.random.normal(*LOGIT, (shape[0], 1)))
        told = self.random.uniform(0.02, 0.16, (shape[0], 1))
        own = _sigmoid(self.random.normal(0.0, 1.4, shape))
        alone = (self.random.random((shape[0], 1)) >= INFERENCE_SHARE) & (shape[1] > 1)
        sigma = np.where(alone, own, shared * mask)
        levels = np.where(alone, own, np.where(mask == 1, shared, told))
        weight = np.where(alone, 1, mask)
        return sigma.astype(np.float32), levels.astype(np.float32), weight.astype(np.float32)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
