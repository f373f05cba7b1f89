"""Train the Blocks autoencoder, or its decoder alone: latents then stay what they are, and pictures become sharper.

A transformer that learned an encoder's latents keeps its worth when the decoder learns on, and has to be trained on
when the encoder does.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from autoencoder import VARIED_FRAMES, held_out_decibels, latent_deviation, to_tensor
from diffusers import AutoencoderKL
from losses import EVERY
from numpy.typing import NDArray
from stop import Stop, Timer
from torch import Tensor, nn
from trainer import Schedule, Trainer

KL_WEIGHT = 5e-5  # of the mean KL per latent element; beside an L1 of about 0.02
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0
ABSOLUTE_WEIGHT = 0.03  # of the decoder alone: the mean absolute error beside the squares, which PSNR counts
NOISE = 0.02  # added to the scaled latents of the decoder alone: those that a transformer makes are not exact


def train_autoencoder(
    vae: AutoencoderKL,
    pictures: NDArray[np.uint8],
    latents: NDArray[np.float16] | None = None,
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
) -> tuple[float, bool]:
    """Train until the schedule or ``minutes`` end, or SIGTERM; return the held-out dB of the average weights, and
    whether the schedule's end was reached.

    Args:
        pictures: (scenes, frames, h, w, 3).
        latents: (scenes, frames, 16, h / 8, w / 8), scaled, of these pictures: the decoder alone learns. None: both do,
            and the scaling factor follows.
        state: file of everything needed to go on. save: writes an autoencoder to its folder.
    Raises: ValueError if the state is of another model.
    """
    vae.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    average = copy.deepcopy(vae)
    parts = ("encoder", "decoder") if latents is None else ("decoder",)
    model, averages = (nn.ModuleDict({name: getattr(each, name) for name in parts}) for each in (vae, average))
    trainer = Trainer(model, averages, state, schedule, matrix, threads)
    random = np.random.default_rng(seed + trainer.step)
    timer, stopped, whose = Timer(minutes), Stop(), " and ".join(parts)

    def draw() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """Return a loss and what it takes of a batch."""
        scenes, names = random.integers(len(pictures), size=batch), random.integers(VARIED_FRAMES, size=batch)
        target = to_tensor(pictures[scenes, names])
        shape = (batch, vae.config.latent_channels, target.shape[2] // 8, target.shape[3] // 8)
        noise = torch.from_numpy(random.standard_normal(shape, np.float32))
        if latents is None:
            return partial(autoencoder_loss, vae), (target, noise)
        given = torch.from_numpy(latents[scenes, names].astype(np.float32)) + NOISE * noise
        return partial(decoder_loss, vae.decoder), (target, given / vae.config.scaling_factor)

    def keep() -> float:
        trainer.save()
        if latents is None:
            average.register_to_config(scaling_factor=1 / latent_deviation(average, pictures, device))
        decibels = held_out_decibels(average, pictures.shape[2], device)
        save(average)
        hours, factor = trainer.cpu_seconds / 3600, average.config.scaling_factor
        report(
            f"{whose} step {trainer.step}, {hours:.2f} core hours, held out {decibels:.2f} dB, "
            f"scaling factor {factor:.4f}"
        )
        return decibels

    def whole() -> bool:
        return schedule.steps is not None and trainer.step >= schedule.steps

    while not (stopped or timer.over or whole()):
        with timer.step(trainer):
            loss_of, tensors = draw()
            shares = zip(*(tensor.to(device).chunk(threads) for tensor in tensors), strict=True)
            gradients, losses = trainer.gradients([partial(loss_of, *share) for share in shares])
            trainer.update(gradients)
        if trainer.step % EVERY == 0:
            loss = float(torch.cat(losses).mean())
            report(f"{whose} step {trainer.step} {trainer.seconds / 60:.1f} min loss {loss:.4f}")
        if timer.due:
            keep()
    return keep(), whole()


def matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon takes a parameter: kernels and matrices, but for the first and last layer of each part."""
    return parameter.ndim in (2, 4) and ".conv_in." not in name and ".conv_out." not in name


def autoencoder_loss(vae: AutoencoderKL, target: Tensor, noise: Tensor) -> Tensor:
    """Return L1 + squares + edges + KL (n,) of reconstructing ``target`` (n, 3, h, w) in -1..1.

    noise: (n, 16, h / 8, w / 8), normal: where in the posterior the latents are drawn.
    """
    with torch.autocast(target.device.type, torch.bfloat16):
        mean, variance = vae.encoder(target).float().chunk(2, 1)
        variance = variance.clamp(-20, 10)
        output = vae.decoder(mean + noise * (0.5 * variance).exp()).float()
    every = (1, 2, 3)
    kl = 0.5 * (mean**2 + variance.exp() - 1 - variance).mean(every)
    difference = output - target
    edges = (difference.diff(dim=2).abs().mean(every) + difference.diff(dim=3).abs().mean(every)) / 2
    # Squares beside absolutes: the absolute error alone is content to leave thin lines out.
    square = difference.square().mean(every)
    return difference.abs().mean(every) + SQUARE_WEIGHT * square + EDGE_WEIGHT * edges + KL_WEIGHT * kl


def decoder_loss(decoder: nn.Module, target: Tensor, latents: Tensor) -> Tensor:
    """Return the loss (n,) of decoding ``latents`` (n, 16, h, w) into ``target`` (n, 3, 8 h, 8 w) in -1..1."""
    with torch.autocast(target.device.type, torch.bfloat16):
        output = decoder(latents.contiguous(memory_format=torch.channels_last))
    difference = output.float() - target
    return (difference.square() + ABSOLUTE_WEIGHT * difference.abs()).mean((1, 2, 3))
