"""UniVG and Stable Diffusion 3 on the export side: MM-DiT in diffusers' folder layout, T5 and CLIP as it has them."""

from collections.abc import Mapping
from pathlib import Path

from framert.export.cases import Case, Condition, vae_cases
from framert.export.checkpoint import Checkpoint, config_values
from framert.export.clip_tokenizer import read_ready, write_clip_tokenizer
from framert.export.families import univg_cases
from framert.export.families.univg_plan import GUIDANCE_BRANCHES, plan_graphs
from framert.export.families.univg_text import T5_TOKENS, TextLayout
from framert.export.models.mmdit_config import MMDiTConfig
from framert.export.plan import GraphPlan
from framert.export.quantize import smoothing, two_streams
from framert.export.quantize.recipe import Recipe
from framert.export.quantize.smoothing import Link
from framert.export.tokenizer import write_tokenizer
from framert.runtime.errors import CheckpointError, ConfigError
from framert.runtime.manifest import Manifest, ModelSpec, ScheduleSpec, TokenizerSpec

# diffusers' values of what a scheduler's configuration leaves out, and what it may not ask for.
SCHEDULE = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
OTHER_SCHEDULES = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal",
    "stochastic_sampling",
)  # fmt: skip


class UniVG:
    name = "univg"
    guidance_branches = GUIDANCE_BRANCHES
    prompt_tokens = T5_TOKENS

    def plans(self, checkpoint: Checkpoint) -> tuple[GraphPlan, ...]:
        transformer = MMDiTConfig.from_checkpoint(checkpoint.configs["transformer"])
        return plan_graphs(transformer, TextLayout.of(checkpoint, transformer), checkpoint)

    def model(self, checkpoint: Checkpoint) -> ModelSpec:
        transformer, vae = MMDiTConfig.from_checkpoint(checkpoint.configs["transformer"]), checkpoint.configs["vae"]
        names = ("latent_channels", "block_out_channels", "scaling_factor")
        values = config_values(vae, names, "the configuration in vae/")
        if values["latent_channels"] != transformer.out_channels:
            raise CheckpointError(
                f"the transformer makes {transformer.out_channels} channels and the autoencoder reads "
                f"{values['latent_channels']}; take both from one checkpoint"
            )
        return ModelSpec(
            hidden_size=transformer.hidden_size,
            depth=transformer.depth,
            heads=transformer.num_heads,
            kv_heads=transformer.num_heads,
            head_dim=transformer.head_dim,
            softcap=0.0,
            patch=transformer.patch,
            latent_channels=transformer.out_channels,
            vae_factor=2 ** (len(values["block_out_channels"]) - 1),
            scaling_factor=values["scaling_factor"],
            text_width=transformer.text_width,
            max_positions=transformer.positions,
            max_frames=1,
            shift=float(vae.get("shift_factor") or 0.0),
            condition_channels=transformer.condition_channels,
            pooled_width=transformer.pooled_width,
            modulations=transformer.modulation_count,
        )

    def schedule(self, checkpoint: Checkpoint) -> ScheduleSpec:
        config = checkpoint.configs["scheduler"]
        if asked := [name for name in OTHER_SCHEDULES if config.get(name)]:
            raise CheckpointError(f"scheduler/ asks for {', '.join(asked)}; supported: a static or a dynamic shift")
        steps = config_values(config, ("num_train_timesteps",), "the configuration in scheduler/")
        shift = 0.0 if config.get("use_dynamic_shifting") else float(config.get("shift") or 1.0)
        return ScheduleSpec(
            **steps, **{name: config.get(name, SCHEDULE[name]) for name in SCHEDULE}, static_shift=shift
        )

    def native_side(self, checkpoint: Checkpoint) -> int:
        config, model = checkpoint.configs["transformer"], self.model(checkpoint)
        latent = min(config.get("sample_size") or 128, model.max_positions * model.patch)
        side: int = config.get("native_side", latent * model.vae_factor)
        return side

    def write_tokenizers(self, checkpoint: Checkpoint, folder: Path) -> Mapping[str, TokenizerSpec]:
        layout = TextLayout.of(checkpoint, MMDiTConfig.from_checkpoint(checkpoint.configs["transformer"]))
        specs: dict[str, TokenizerSpec] = {}
        for number, encoder in enumerate(layout.encoders, 1):
            file = "tokenizer.json" if number == 1 else f"tokenizer_{number}.json"
            source = checkpoint.tokenizer_of(encoder.folder)
            if encoder is layout.t5:
                _write_t5_tokenizer(source, folder / file)
                pad_to, pad_id = (T5_TOKENS if layout.pads else 0), int(encoder.config.get("pad_token_id") or 0)
                specs[encoder.input] = TokenizerSpec(file=file, max_tokens=T5_TOKENS, pad_to=pad_to, pad_id=pad_id)
            else:
                length, pad_id = layout.clip_tokens, write_clip_tokenizer(source, folder / file)
                specs[encoder.input] = TokenizerSpec(file=file, max_tokens=length, pad_to=length, pad_id=pad_id)
        return specs

    def cases(self, graph: str, manifest: Manifest, checkpoint: Checkpoint, condition: Condition) -> list[Case]:
        if graph == "text_encoder":
            transformer = MMDiTConfig.from_checkpoint(checkpoint.configs["transformer"])
            return univg_cases.text_encoder_cases(TextLayout.of(checkpoint, transformer))
        if graph == "denoiser":
            return univg_cases.denoiser_cases(manifest, condition)
        if graph == "conditioner":
            return univg_cases.conditioner_cases(manifest.graphs)
        if graph == "image_encoder":
            return univg_cases.image_encoder_cases(manifest.graphs)
        return vae_cases(graph, manifest.model)

    def links(self, part: str, checkpoint: Checkpoint) -> list[Link]:
        transformer = MMDiTConfig.from_checkpoint(checkpoint.configs["transformer"])
        if part == "transformer":
            return two_streams.transformer_links(transformer)
        t5 = TextLayout.of(checkpoint, transformer).t5
        if t5 is None:
            raise ConfigError(
                "this checkpoint's text encoders are CLIPs, which stay in fp32; name the denoiser alone, "
                "as in precision denoiser=int8"
            )
        prefix = "" if checkpoint.text_encoders == ("text_encoder",) else f"{t5.folder}."
        return smoothing.text_links(int(t5.config["num_layers"]), prefix)

    def folded(self, recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
        return recipe  # no norm stands behind its products to cancel a factor; published in fp16, it needs none


def _write_t5_tokenizer(source: Path, output: Path) -> None:
    """Write it as sentencepiece has it, or else as the folder's own tokenizer.json has."""
    if not (source / "spiece.model").is_file() and (ready := read_ready(source)) is not None:
        ready.save(str(output), pretty=False)
    else:
        write_tokenizer(source, output)
