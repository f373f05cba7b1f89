"""The five graphs of a bundle: which module each one traces, and its exact inputs and outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from framert.export import traced
from framert.export.models.nextdit import NextDiT, NextDiTConfig
from framert.runtime.manifest import TensorSpec

# Branches of guidance_index: fixed, so that a result does not depend on who else is in the pack.
GUIDANCE_BRANCHES = 4


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph. part: the checkpoint folder of its weights, which ``build`` holds as its attribute ``model``.

    multiples: what the sizes of a free axis are multiples of.
    """

    name: str
    part: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    multiples: Mapping[str, int] = field(default_factory=dict)


class TextEncoder(nn.Module):
    """Token ids of one prompt, without padding -> hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden_states: Tensor = self.model(input_ids=input_ids).last_hidden_state[0]
        return hidden_states


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


class Conditioner(nn.Module):
    def __init__(self, model: NextDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.condition(hidden_states, noise_level)


class Denoiser(nn.Module):
    def __init__(self, model: NextDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        denoise: Callable[..., tuple[Tensor, Tensor, Tensor]] = self.model.denoise
        return denoise(*inputs, attention=traced.frame_attention)


def make_text_encoder(config: Mapping[str, Any]) -> nn.Module:
    """Build the T5 encoder of text_encoder/config.json, without weights of any use."""
    from transformers import T5Config, T5EncoderModel

    fields = {key: value for key, value in config.items() if key not in {"torch_dtype", "dtype"}}
    # SDPA with a bias does not trace with a free length.
    model: nn.Module = T5EncoderModel._from_config(
        T5Config.from_dict(fields), attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def make_vae(config: Mapping[str, Any]) -> nn.Module:
    """Build the autoencoder of vae/config.json, without weights of any use."""
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL.from_config(dict(config))
    model.set_attn_processor(PixelAttention())
    built: nn.Module = model.eval()
    return built


def plan_graphs(
    transformer: NextDiTConfig, vae: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> tuple[GraphPlan, ...]:
    """Return the graphs in the order they run."""
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    channels, text_width = int(vae["latent_channels"]), int(text_encoder["d_model"])
    pixels = _float(1, int(vae["in_channels"]), "height", "width")
    latents = _float(1, channels, "latent_height", "latent_width")
    text = _float(transformer.depth, "length", transformer.num_kv_heads, transformer.head_dim)
    slots = _float("slots", transformer.token_width)
    return (
        GraphPlan(
            "text_encoder",
            "text_encoder",
            lambda: TextEncoder(make_text_encoder(text_encoder)),
            {"input_ids": TensorSpec(dtype="int64", shape=(1, "length"))},
            {"hidden_states": _float("length", text_width)},
        ),
        GraphPlan(
            "vae_encoder",
            "vae",
            lambda: VaeEncoder(make_vae(vae)),
            {"pixels": pixels},
            {"mean": latents, "log_variance": latents},
            {"height": factor, "width": factor},
        ),
        GraphPlan(
            "conditioner",
            "transformer",
            lambda: Conditioner(NextDiT(transformer)),
            {"hidden_states": _float("length", text_width), "noise_level": _float("rows")},
            {
                "text_k": text,
                "text_v": text,
                "modulation": _float("rows", transformer.modulation_count, transformer.hidden_size),
            },
        ),
        GraphPlan(
            "denoiser",
            "transformer",
            lambda: Denoiser(NextDiT(transformer)),
            _denoiser_inputs(transformer),
            {"next_latents": slots, "next_history": slots, "velocity": slots},
        ),
        GraphPlan(
            "vae_decoder",
            "vae",
            lambda: VaeDecoder(make_vae(vae)),
            {"latents": latents},
            {"pixels": pixels},
        ),
    )


def _denoiser_inputs(config: NextDiTConfig) -> dict[str, TensorSpec]:
    text = _float(config.depth, "capacity", config.num_kv_heads, config.head_dim)
    return {
        "latents": _float("slots", config.token_width),
        "history": _float("slots", config.token_width),
        "source": _int("tokens"),
        "position": _int("tokens", 3),
        "frame": _int("tokens"),
        "row": _int("frames"),
        "modulation": _float("rows", config.modulation_count, config.hidden_size),
        "q_range": _int("sequences", 2),
        "kv_range": _int("sequences", 2),
        "text_k": text,
        "text_v": text,
        "text_range": _int("sequences", 2),
        "guidance_index": _int("slots", GUIDANCE_BRANCHES),
        "guidance_weight": _float("slots", GUIDANCE_BRANCHES),
        "update": _float("slots", 6),
    }


def _float(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=shape)


def _int(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="int32", shape=shape)
