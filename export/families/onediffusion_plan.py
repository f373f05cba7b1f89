"""The five graphs of a OneDiffusion bundle."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from framert.export.encoders import make_t5
from framert.export.models.nextdit import NextDiT, NextDiTConfig
from framert.export.plan import Denoiser, GraphPlan, floats, ints, vae_plans
from framert.runtime.manifest import TensorSpec

# Branches of guidance_index: fixed, so that a result does not depend on who else is in the pack.
GUIDANCE_BRANCHES = 4


class TextEncoder(nn.Module):
    """Token ids of one prompt, without padding -> hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden_states: Tensor = self.model(input_ids=input_ids).last_hidden_state[0]
        return hidden_states


class Conditioner(nn.Module):
    def __init__(self, model: NextDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.condition(hidden_states, noise_level)


def plan_graphs(
    transformer: NextDiTConfig, vae: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> tuple[GraphPlan, ...]:
    """Return the graphs in the order they run."""
    text_width = int(text_encoder["d_model"])
    text = floats(transformer.depth, "length", transformer.num_kv_heads, transformer.head_dim)
    slots = floats("slots", transformer.token_width)
    inputs = _denoiser_inputs(transformer)
    vae_encoder, vae_decoder = vae_plans(vae)
    return (
        GraphPlan(
            "text_encoder",
            "text_encoder",
            lambda: TextEncoder(make_t5(text_encoder)),
            {"input_ids": TensorSpec(dtype="int64", shape=(1, "length"))},
            {"hidden_states": floats("length", text_width)},
        ),
        vae_encoder,
        GraphPlan(
            "conditioner",
            "transformer",
            lambda: Conditioner(NextDiT(transformer)),
            {"hidden_states": floats("length", text_width), "noise_level": floats("rows")},
            {
                "text_k": text,
                "text_v": text,
                "modulation": floats("rows", transformer.modulation_count, transformer.hidden_size),
            },
        ),
        GraphPlan(
            "denoiser",
            "transformer",
            lambda: Denoiser(NextDiT(transformer), inputs),
            inputs,
            {"next_latents": slots, "next_history": slots, "velocity": slots},
        ),
        vae_decoder,
    )


def _denoiser_inputs(config: NextDiTConfig) -> dict[str, TensorSpec]:
    text = floats(config.depth, "capacity", config.num_kv_heads, config.head_dim)
    return {
        "latents": floats("slots", config.token_width),
        "history": floats("slots", config.token_width),
        "source": ints("tokens"),
        "position": ints("tokens", 3),
        "frame": ints("tokens"),
        "row": ints("frames"),
        "modulation": floats("rows", config.modulation_count, config.hidden_size),
        "q_range": ints("sequences", 2),
        "kv_range": ints("sequences", 2),
        "text_k": text,
        "text_v": text,
        "text_range": ints("sequences", 2),
        "guidance_index": ints("slots", GUIDANCE_BRANCHES),
        "guidance_weight": floats("slots", GUIDANCE_BRANCHES),
        "update": floats("slots", 6),
    }
