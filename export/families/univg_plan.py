"""The graphs of a UniVG bundle; Stable Diffusion 3's are the same without a condition."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from framert.export.checkpoint import IMAGE_ENCODER, IMAGE_PROCESSOR, Checkpoint
from framert.export.encoders import CLIP_VISION, make_clip_vision
from framert.export.families.univg_text import TextLayout
from framert.export.models.mmdit import MMDiT
from framert.export.models.mmdit_config import MMDiTConfig
from framert.export.plan import Denoiser, GraphPlan, floats, ints, vae_plans
from framert.runtime.errors import CheckpointError
from framert.runtime.manifest import TensorSpec

GUIDANCE_BRANCHES = 3  # without text and picture, with the picture, with both
# CLIP's own, where the checkpoint names no others.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Conditioner(nn.Module):
    """Hidden states, the pooled text and noise levels -> text tokens and modulation."""

    def __init__(self, model: MMDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, pooled: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.condition(hidden_states, noise_level, pooled)


class ImageEncoder(nn.Module):
    """Pixels in -1..1 -> the feature that stands for them in a prompt."""

    def __init__(self, model: Any, processor: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._mean = tuple(processor.get("image_mean") or MEAN)
        self._deviation = tuple(processor.get("image_std") or DEVIATION)

    def forward(self, pixels: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in (self._mean, self._deviation))
        feature: Tensor = self.model(pixel_values=(pixels * 0.5 + 0.5 - mean) / deviation).image_embeds
        return feature


def plan_graphs(transformer: MMDiTConfig, text: TextLayout, checkpoint: Checkpoint) -> tuple[GraphPlan, ...]:
    """Return the graphs in the order they run."""
    slots, inputs = floats("slots", transformer.token_width), _denoiser_inputs(transformer)
    pooled = floats(transformer.pooled_width)
    vae_encoder, vae_decoder = vae_plans(checkpoint.configs["vae"])
    images = (_image_encoder(checkpoint, transformer.text_width),) if text.features else ()
    return (
        *images,
        text.plan(),
        vae_encoder,
        GraphPlan(
            "conditioner",
            "transformer",
            lambda: Conditioner(MMDiT(transformer)),
            {
                "hidden_states": floats("length", transformer.text_width),
                "pooled": pooled,
                "noise_level": floats("rows"),
            },
            {
                "text": floats("length", transformer.hidden_size),
                "modulation": floats("rows", transformer.modulation_count, transformer.hidden_size),
            },
        ),
        GraphPlan(
            "denoiser",
            "transformer",
            lambda: Denoiser(MMDiT(transformer), inputs),
            inputs,
            {"next_latents": slots, "next_history": slots, "velocity": slots},
        ),
        vae_decoder,
    )


def _denoiser_inputs(config: MMDiTConfig) -> dict[str, TensorSpec]:
    conditioned = config.condition_channels > 0
    conditions = {"conditions": floats("condition_rows", config.condition_width)} if conditioned else {}
    return {
        "latents": floats("slots", config.token_width),
        "history": floats("slots", config.token_width),
        **conditions,
        "source": ints("tokens"),
        **({"condition_source": ints("tokens")} if conditioned else {}),
        "position": ints("tokens", 3),
        "frame": ints("tokens"),
        "row": ints("frames"),
        "modulation": floats("rows", config.modulation_count, config.hidden_size),
        "q_range": ints("sequences", 2),
        "kv_range": ints("sequences", 2),
        "text": floats("capacity", config.hidden_size),
        "text_source": ints("text_tokens"),
        "text_frame": ints("text_tokens"),
        "text_range": ints("sequences", 2),
        "guidance_index": ints("slots", GUIDANCE_BRANCHES),
        "guidance_weight": floats("slots", GUIDANCE_BRANCHES),
        "update": floats("slots", 6),
    }


def _image_encoder(checkpoint: Checkpoint, text_width: int) -> GraphPlan:
    config, processor = checkpoint.configs[IMAGE_ENCODER], checkpoint.configs.get(IMAGE_PROCESSOR, {})
    if config.get("model_type") != CLIP_VISION or config.get("projection_dim") != text_width:
        raise CheckpointError(
            f"image_encoder/config.json has model_type {config.get('model_type')!r} and projection_dim "
            f"{config.get('projection_dim')}; supported: {CLIP_VISION!r} that gives {text_width}, the width of text"
        )
    side = int(config["image_size"])
    return GraphPlan(
        "image_encoder",
        IMAGE_ENCODER,
        lambda: ImageEncoder(make_clip_vision(config), processor),
        {"pixels": floats(1, 3, side, side)},
        {"feature": floats(1, text_width)},
    )
