"""What a graph is made of: the module that is traced, and its exact inputs and outputs. Families plan theirs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from framert.export import traced
from framert.runtime.manifest import TensorSpec


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph. part: the checkpoint part of its weights, which ``build`` holds as its attribute ``model``.

    multiples: what the sizes of a free axis are multiples of.
    """

    name: str
    part: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    multiples: Mapping[str, int] = field(default_factory=dict)


class Denoiser(nn.Module):
    """``model.denoise`` with its inputs by position, named ``names``."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._step(inputs, attention=traced.frame_attention)

    def exact(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what ``forward`` only traces: the attention there is a stand-in without a result."""
        return self._step(inputs)

    def _step(self, inputs: Sequence[Tensor], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        denoise: Callable[..., tuple[Tensor, Tensor, Tensor]] = self.model.denoise
        return denoise(**dict(zip(self._names, inputs, strict=True)), **options)


class VaeEncoder(nn.Module):
    """Pixels -> mean and log-variance of the posterior, as the autoencoder gives them (not scaled)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.model._encode(pixels).chunk(2, dim=1)
        return mean, log_variance


class VaeDecoder(nn.Module):
    """Latents, divided by the scaling factor -> pixels, not clipped."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.model.decode(latents, return_dict=False)[0]
        return pixels


class PixelAttention:
    """The autoencoder's attention over all pixels, as two products and a softmax, which every runtime has.

    diffusers' own becomes an Attention operator, or fills a matrix as large as the scores first.
    """

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        assert attention.heads == 1
        assert attention.residual_connection
        batch, channels, height, width = hidden_states.shape
        x = attention.group_norm(hidden_states.view(batch, channels, height * width)).transpose(1, 2)
        query = attention.to_q(x) * attention.scale
        weights = torch.softmax(query @ attention.to_k(x).transpose(1, 2), dim=-1)
        mixed: Tensor = attention.to_out[0](weights @ attention.to_v(x))
        mixed = mixed.transpose(1, 2).reshape(batch, channels, height, width)
        result: Tensor = (mixed + hidden_states) / attention.rescale_output_factor
        return result


def make_vae(config: Mapping[str, Any]) -> nn.Module:
    """Build the autoencoder of vae/config.json, without weights of any use."""
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL.from_config(dict(config))
    model.set_attn_processor(PixelAttention())
    built: nn.Module = model.eval()
    return built


def vae_plans(config: Mapping[str, Any]) -> tuple[GraphPlan, GraphPlan]:
    """Return the graphs of the autoencoder of vae/config.json: encoder and decoder."""
    factor, channels = 2 ** (len(config["block_out_channels"]) - 1), int(config["latent_channels"])
    pixels = floats(1, int(config["in_channels"]), "height", "width")
    latents = floats(1, channels, "latent_height", "latent_width")
    return (
        GraphPlan(
            "vae_encoder",
            "vae",
            lambda: VaeEncoder(make_vae(config)),
            {"pixels": pixels},
            {"mean": latents, "log_variance": latents},
            {"height": factor, "width": factor},
        ),
        GraphPlan(
            "vae_decoder",
            "vae",
            lambda: VaeDecoder(make_vae(config)),
            {"latents": latents},
            {"pixels": pixels},
        ),
    )


def floats(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=shape)


def ints(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="int32", shape=shape)
