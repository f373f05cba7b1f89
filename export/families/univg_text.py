"""UniVG's text: one graph for all text encoders of a checkpoint, T5 and up to two CLIPs, joined as diffusers does.

CLIP's tokens come first, the two encoders side by side and filled up with zeros to the joint width, then T5's. What a
checkpoint lacks is zeros there, as in diffusers where that says so: 256 tokens for T5. Which CLIP a lone one is follows
from its folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from framert.export.checkpoint import Checkpoint, config_values
from framert.export.encoders import CLIP, T5, make_clip, make_t5
from framert.export.models.mmdit_config import MMDiTConfig
from framert.export.plan import GraphPlan, floats, ints
from framert.export.tokenizer import read_tokenizer_config
from framert.runtime.errors import CheckpointError
from framert.runtime.manifest import TensorSpec

T5_INPUT = "input_ids"
CLIP_INPUTS = {"text_encoder": "clip_ids", "text_encoder_2": "clip_2_ids"}
T5_TOKENS = 256  # of a prompt; Stable Diffusion 3 fills shorter ones up, and attends to that


@dataclass(frozen=True, slots=True)
class Encoder:
    """One text encoder: its folder, the graph input of its ids, and its configuration."""

    folder: str
    input: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextLayout:
    """The text encoders of a checkpoint, and how their results stand beside each other.

    clips: in their order. clip_tokens: tokens of a prompt for all CLIPs, always filled up. zeros: width that a missing
    first CLIP leaves before the second. pads: whether T5's prompts are filled up, to T5_TOKENS.
    """

    text_width: int
    pooled_width: int
    t5: Encoder | None
    clips: tuple[Encoder, ...]
    clip_tokens: int
    zeros: int
    pads: bool
    features: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, transformer: MMDiTConfig) -> "TextLayout":
        """Raises: CheckpointError for encoders of other kinds, in other folders, or of widths that do not fit."""
        found: dict[str, list[Encoder]] = {T5: [], CLIP: []}
        for folder in checkpoint.text_encoders:
            config = checkpoint.configs[folder]
            kind = config.get("model_type")
            if kind not in found or (kind == CLIP and folder not in CLIP_INPUTS):
                raise CheckpointError(
                    f"{folder}/config.json has model_type {kind!r}; supported: {T5!r} anywhere, and {CLIP!r} in "
                    f"{' and '.join(CLIP_INPUTS)}"
                )
            found[kind].append(Encoder(folder, T5_INPUT if kind == T5 else CLIP_INPUTS[folder], config))
        if len(found[T5]) > 1:
            raise CheckpointError(f"{' and '.join(one.folder for one in found[T5])} are both T5; keep one")
        clips, width, pooled = tuple(found[CLIP]), transformer.text_width, transformer.pooled_width
        hidden = [_value(one, "hidden_size") for one in clips]
        projected = [_value(one, "projection_dim") for one in clips]
        zeros = pooled - projected[0] if [one.folder for one in clips] == ["text_encoder_2"] else 0
        if zeros < 0 or zeros + sum(hidden) > width or sum(projected) > pooled:
            raise CheckpointError(
                f"the CLIPs are {hidden} wide and give {projected}; the transformer takes {width} for text and "
                f"{pooled} for pooled text"
            )
        if len(clips) == len(CLIP_INPUTS) and sum(projected) != pooled:
            raise CheckpointError(f"the CLIPs give {projected} values of pooled text, the transformer takes {pooled}")
        for one in found[T5]:
            if (own := _value(one, "d_model")) != width:
                raise CheckpointError(f"{one.folder} gives {own} values a token, the transformer takes {width}")
        return cls(
            text_width=width,
            pooled_width=pooled,
            t5=found[T5][0] if found[T5] else None,
            clips=clips,
            clip_tokens=_clip_tokens(checkpoint, clips),
            zeros=zeros,
            pads=bool(found[T5]) and (bool(clips) or found[T5][0].folder != "text_encoder"),
            features="image_encoder" in checkpoint.configs,
        )

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """All of them, in the order of the graph's inputs."""
        return (*((self.t5,) if self.t5 is not None else ()), *self.clips)

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        specs = {one.input: TensorSpec(dtype="int64", shape=(1, self.clip_tokens)) for one in self.clips}
        if self.t5 is not None:
            specs = {T5_INPUT: TensorSpec(dtype="int64", shape=(1, "length"))} | specs
        if self.features:
            specs |= {"feature": floats("features", self.text_width), "feature_index": ints("features")}
        return specs

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        length: str | int = "length" if not self.clips else "text_length" if self.t5 else self.clip_tokens + T5_TOKENS
        pooled = {"pooled": floats(self.pooled_width)} if self.clips else {}
        return {"hidden_states": floats(length, self.text_width), **pooled}

    def plan(self) -> GraphPlan:
        return GraphPlan("text_encoder", "text_encoder", lambda: TextEncoders(self), self.inputs, self.outputs)


class TextEncoders(nn.Module):
    """Ids of one prompt, by encoder -> hidden states and, where there is a CLIP, the pooled text."""

    def __init__(self, layout: TextLayout) -> None:
        super().__init__()
        made = {one.folder: (make_t5 if one is layout.t5 else make_clip)(one.config) for one in layout.encoders}
        self.layout = layout
        self.model = made["text_encoder"] if list(made) == ["text_encoder"] else nn.ModuleDict(made)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        layout, given = self.layout, dict(zip(self.layout.inputs, inputs, strict=True))
        t5 = [] if layout.t5 is None else [self._t5(layout.t5, given)]
        if not layout.clips:
            return t5[0]
        hidden, pooled = self._clips(given)
        words = t5 or [torch.zeros(T5_TOKENS, layout.text_width, dtype=hidden.dtype)]
        return torch.cat((hidden, *words)), pooled

    def _t5(self, encoder: Encoder, given: Mapping[str, Tensor]) -> Tensor:
        model, ids = self._model(encoder), given[T5_INPUT]
        if self.layout.features:
            embedded = model.shared(ids)[0].index_copy(0, given["feature_index"].long(), given["feature"])
            result = model(inputs_embeds=embedded.unsqueeze(0))
        else:
            result = model(input_ids=ids)
        hidden_states: Tensor = result.last_hidden_state[0]
        return hidden_states

    def _clips(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        layout = self.layout
        results = [self._model(one)(input_ids=given[one.input], output_hidden_states=True) for one in layout.clips]
        hidden = torch.cat([result.hidden_states[-2][0] for result in results], dim=-1)
        hidden = functional.pad(hidden, (layout.zeros, layout.text_width - layout.zeros - hidden.shape[-1]))
        pooled = torch.cat([result.text_embeds[0] for result in results], dim=-1)
        return hidden, functional.pad(pooled, (layout.zeros, layout.pooled_width - layout.zeros - pooled.shape[-1]))

    def _model(self, encoder: Encoder) -> Any:
        return self.model[encoder.folder] if isinstance(self.model, nn.ModuleDict) else self.model


def _value(encoder: Encoder, name: str) -> int:
    return int(config_values(encoder.config, (name,), f"the configuration in {encoder.folder}/")[name])


def _clip_tokens(checkpoint: Checkpoint, clips: Sequence[Encoder]) -> int:
    """Return the length that every CLIP's prompts are filled up to: that of the first one's tokenizer."""
    if not clips:
        return 0
    places = min(_value(one, "max_position_embeddings") for one in clips)
    given = read_tokenizer_config(checkpoint.tokenizer_of(clips[0].folder)).get("model_max_length")
    return min(places, int(given)) if isinstance(given, int | float) else places
