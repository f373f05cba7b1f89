"""Train the decoder of the Blocks autoencoder on: latents stay what they are, pictures of them become sharper.

The encoder does not change, so a transformer that learned its latents keeps its worth. Moments begin anew, so pictures
lose some dB first (1.6 after 370 steps at a rate of 1e-4, 7.8 after 475 at 5e-4): not for a few minutes.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from autoencoder import VARIED_FRAMES, held_out_decibels, to_tensor
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from stop import Stop, Timer
from torch import Tensor, nn
from trainer import Schedule, Trainer

ABSOLUTE_WEIGHT = 0.03  # of the mean absolute error beside the squares, which PSNR counts
NOISE = 0.02  # added to the scaled latents: those that a transformer makes are not exact


def train_decoder(
    vae: AutoencoderKL,
    pictures: NDArray[np.uint8],
    latents: NDArray[np.float16],
    *,
    state: Path,
    schedule: Schedule,
    batch: int,
    threads: int,
    minutes: float | None,
    seed: int,
    device: str,
    report: Callable[[str], None],
    save: Callable[[AutoencoderKL], None],
) -> float:
    """Train until the schedule or ``minutes`` end, or SIGTERM; return the held-out dB of the average weights.

    Args:
        pictures: (scenes, frames, h, w, 3); latents: (scenes, frames, 16, h / 8, w / 8), scaled, of these pictures.
        state: file of everything needed to go on. save: writes an autoencoder to its folder.
    """
    vae.to(device).eval()
    decoder, average = vae.decoder, copy.deepcopy(vae.decoder)
    trainer = Trainer(decoder, average, state, schedule, lambda name, parameter: False, threads)
    random = np.random.default_rng(seed + trainer.step)
    timer, stopped = Timer(minutes), Stop()

    def keep() -> float:
        trainer.save()
        vae.decoder = average
        decibels = held_out_decibels(vae, pictures.shape[2], device)
        save(vae)
        vae.decoder = decoder
        report(f"decoder step {trainer.step}, {trainer.cpu_seconds / 3600:.2f} core hours, held out {decibels:.2f} dB")
        return decibels

    while not (stopped or timer.over or trainer.step >= (schedule.steps or np.inf)):
        with timer.step(trainer):
            scenes, names = random.integers(len(pictures), size=batch), random.integers(VARIED_FRAMES, size=batch)
            target = to_tensor(pictures[scenes, names])
            given = torch.from_numpy(latents[scenes, names].astype(np.float32))
            given = given + NOISE * torch.from_numpy(random.standard_normal(given.shape, np.float32))
            given = given / vae.config.scaling_factor
            parts = zip(given.chunk(threads), target.chunk(threads), strict=True)
            gradients, _ = trainer.gradients(
                [partial(_loss, decoder, *(each.to(device) for each in part)) for part in parts]
            )
            trainer.update(gradients)
        if timer.due:
            keep()
    return keep()


def _loss(decoder: nn.Module, latents: Tensor, target: Tensor) -> Tensor:
    """Return the loss (n,) of decoding ``latents`` (n, 16, h, w) into ``target`` (n, 3, 8 h, 8 w) in -1..1."""
    with torch.autocast(target.device.type, torch.bfloat16):
        output = decoder(latents.contiguous(memory_format=torch.channels_last))
    difference = output.float() - target
    return (difference.square() + ABSOLUTE_WEIGHT * difference.abs()).mean((1, 2, 3))
