"""OneDiffusion on the export side: NextDiT with a T5 encoder, in the published folder layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framert.export import cases
from framert.export.cases import Case, Condition
from framert.export.checkpoint import Checkpoint, config_values
from framert.export.families.onediffusion_plan import GUIDANCE_BRANCHES, plan_graphs
from framert.export.models.nextdit import NextDiTConfig
from framert.export.plan import GraphPlan
from framert.export.quantize import smoothing
from framert.export.quantize.recipe import Recipe
from framert.export.quantize.smoothing import Link
from framert.export.tokenizer import write_tokenizer
from framert.runtime.manifest import Manifest, ModelSpec, ScheduleSpec, TokenizerSpec

NATIVE_SIDE = 512  # pixels, of the published model
SCHEDULE = ("num_train_timesteps", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
VAE = ("in_channels", "latent_channels", "block_out_channels", "scaling_factor")


class OneDiffusion:
    name = "onediffusion"
    guidance_branches = GUIDANCE_BRANCHES
    prompt_tokens = 300  # what the published pipeline tokenizes to

    def plans(self, checkpoint: Checkpoint) -> tuple[GraphPlan, ...]:
        configs = checkpoint.configs
        transformer = NextDiTConfig.from_checkpoint(configs["transformer"])
        return plan_graphs(transformer, configs["vae"], configs["text_encoder"])

    def model(self, checkpoint: Checkpoint) -> ModelSpec:
        transformer = NextDiTConfig.from_checkpoint(checkpoint.configs["transformer"])
        vae = _values(checkpoint, "vae", VAE)
        return ModelSpec(
            hidden_size=transformer.hidden_size,
            depth=transformer.depth,
            heads=transformer.num_heads,
            kv_heads=transformer.num_kv_heads,
            head_dim=transformer.head_dim,
            softcap=transformer.softcap,
            patch=transformer.patch,
            latent_channels=vae["latent_channels"],
            vae_factor=2 ** (len(vae["block_out_channels"]) - 1),
            scaling_factor=vae["scaling_factor"],  # the published pipeline never reads shift_factor
            text_width=_values(checkpoint, "text_encoder", ("d_model",))["d_model"],
            max_positions=transformer.rotary_max_length,
            max_frames=transformer.rotary_max_length_t,
        )

    def schedule(self, checkpoint: Checkpoint) -> ScheduleSpec:
        return ScheduleSpec(**_values(checkpoint, "scheduler", SCHEDULE))

    def native_side(self, checkpoint: Checkpoint) -> int:
        side: int = checkpoint.configs["transformer"].get("native_side", NATIVE_SIDE)
        return side

    def write_tokenizers(self, checkpoint: Checkpoint, folder: Path) -> Mapping[str, TokenizerSpec]:
        write_tokenizer(checkpoint.tokenizer, folder / "tokenizer.json")
        return {}

    def cases(self, graph: str, manifest: Manifest, checkpoint: Checkpoint, condition: Condition) -> list[Case]:
        if graph == "text_encoder":
            return cases.text_encoder_cases(int(checkpoint.configs["text_encoder"]["vocab_size"]))
        if graph == "denoiser":
            return cases.denoiser_cases(manifest, condition)
        if graph == "conditioner":
            return cases.conditioner_cases(manifest.model)
        return cases.vae_cases(graph, manifest.model)

    def links(self, part: str, checkpoint: Checkpoint) -> list[Link]:
        if part == "transformer":
            return smoothing.transformer_links(NextDiTConfig.from_checkpoint(checkpoint.configs[part]).depth)
        return smoothing.text_links(int(checkpoint.configs[part]["num_layers"]))

    def folded(self, recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
        return recipe.folded(NextDiTConfig.from_checkpoint(checkpoint.configs["transformer"]).depth)


def _values(checkpoint: Checkpoint, part: str, names: tuple[str, ...]) -> dict[str, Any]:
    return config_values(checkpoint.configs[part], names, f"the configuration in {part}/")
