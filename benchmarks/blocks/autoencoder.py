"""Train the Blocks autoencoder: diffusers' AutoencoderKL in the SD3 layout, 16 latent channels, 8x smaller."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dataset import FRAME_NAMES, render_scene
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

KL_WEIGHT = 5e-5  # of the mean KL per latent element; beside an L1 of about 0.02
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0
VARIED_FRAMES = FRAME_NAMES.index("reference0") + 1  # further references are alike, and black where there is no thing
HELD_OUT_SEEDS = range(900_000, 900_012)


def build_autoencoder(channels: tuple[int, ...], side: int) -> AutoencoderKL:
    """Return a new autoencoder; ``channels`` are its four widths, multiples of 8."""
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=channels, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=8,
        use_quant_conv=False, use_post_quant_conv=False, sample_size=side, scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip
    # Posteriors begin narrow: noise as large as the signal would hide it for the first thousand steps.
    vae.encoder.conv_out.bias.data[16:] = -6.0
    return vae


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Return pictures (n, h, w, 3) as a channels-last (n, 3, h, w) tensor in -1..1."""
    tensor = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2)
    return tensor.float().div(127.5).sub(1)


def train_autoencoder(
    vae: AutoencoderKL,
    pictures: NDArray[np.uint8],
    *,
    minutes: float,
    batch: int,
    rate: float,
    seed: int,
    device: str,
    report: Callable[[str], None],
    save: Callable[[], None],
) -> float:
    """Train ``vae`` on pictures (scenes, frames, h, w, 3), set its scaling factor and return its held-out dB."""
    vae.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    begin, step, shown = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * (0.5 + 0.5 * np.cos(np.pi * share)))
        scenes = random.integers(len(pictures), size=batch)
        names = random.integers(VARIED_FRAMES, size=batch)
        target = to_tensor(np.stack([pictures[scene, name] for scene, name in zip(scenes, names, strict=True)]))
        loss, error = autoencoder_loss(vae, target.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            decibels = -10 * np.log10(error / 4)
            report(f"vae step {step} {shown - begin:.0f} s loss {loss.item():.4f} train {decibels:.2f} dB")
        if step % 250 == 0:
            report(f"vae held out {held_out_decibels(vae, pictures.shape[2], device):.2f} dB")
            save()
    vae.eval()
    vae.register_to_config(scaling_factor=1 / latent_deviation(vae, pictures, device))
    decibels = held_out_decibels(vae, pictures.shape[2], device)
    report(f"vae {step} steps, held out {decibels:.2f} dB, scaling factor {vae.config.scaling_factor:.4f}")
    save()
    return decibels


def autoencoder_loss(vae: AutoencoderKL, target: Tensor) -> tuple[Tensor, float]:
    """Return (L1 + squares + edges + KL, mean squared error) of reconstructing ``target`` (n, 3, h, w) in -1..1."""
    with torch.autocast(target.device.type, torch.bfloat16):
        mean, variance = vae.encoder(target).float().chunk(2, 1)
        variance = variance.clamp(-20, 10)
        output = vae.decoder(mean + torch.randn_like(mean) * (0.5 * variance).exp()).float()
    kl = 0.5 * (mean**2 + variance.exp() - 1 - variance).mean()
    difference = output - target
    edges = (difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()) / 2
    # Squares beside absolutes: the absolute error alone is content to leave thin lines out.
    square = (difference**2).mean()
    loss = difference.abs().mean() + SQUARE_WEIGHT * square + EDGE_WEIGHT * edges + KL_WEIGHT * kl
    return loss, square.item()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8], device: str) -> Tensor:
    """Return the scaled posterior means (n, 16, h / 8, w / 8) of 8-bit pictures (n, h, w, 3)."""
    means = []
    for at in range(0, len(pictures), 64):
        with torch.autocast(device, torch.bfloat16):
            means.append(vae.encoder(to_tensor(pictures[at : at + 64]).to(device)).float().chunk(2, 1)[0].cpu())
    return torch.cat(means) * vae.config.scaling_factor


def latent_deviation(vae: AutoencoderKL, pictures: NDArray[np.uint8], device: str) -> float:
    """Return the standard deviation of the unscaled latents of 64 scenes' pictures."""
    sample = pictures[: min(64, len(pictures))].reshape(-1, *pictures.shape[2:])
    return float(encode(vae, sample, device).std() / vae.config.scaling_factor)


@torch.no_grad()
def held_out_decibels(vae: AutoencoderKL, side: int, device: str) -> float:
    """Return the PSNR in dB over all frames of HELD_OUT_SEEDS, from posterior means, in full precision."""
    pictures = np.concatenate([render_scene(seed, side) for seed in HELD_OUT_SEEDS])
    pictures = pictures[pictures.any((1, 2, 3))]
    target = to_tensor(pictures).to(device)
    output = vae.decoder(vae.encoder(target).chunk(2, 1)[0]).clamp(-1, 1)
    return float(-10 * torch.log10(((output - target) ** 2).mean() / 4))


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """Return the autoencoder of a folder in fp32."""
    return AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).float()


def save_autoencoder(vae: AutoencoderKL, folder: Path) -> None:
    """Write config.json and fp16 safetensors as diffusers does; the encoder and decoder tolerate fp16 rounding."""
    copy = build_autoencoder(tuple(vae.config.block_out_channels), vae.config.sample_size)
    copy.load_state_dict(vae.state_dict())
    copy.register_to_config(scaling_factor=vae.config.scaling_factor)
    copy.half().save_pretrained(folder)
