"""The Blocks autoencoder: diffusers' AutoencoderKL in the SD3 layout, 16 latent channels, 8x smaller."""

from pathlib import Path

import numpy as np
import torch
from dataset import FRAME_NAMES, render_scene
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

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
