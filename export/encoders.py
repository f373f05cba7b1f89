"""Encoders of text and of pictures in prompts: transformers' models, built for tracing, without weights of any use."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

T5, CLIP, CLIP_VISION = "t5", "clip_text_model", "clip_vision_model"  # model_type of their configurations


def make_t5(config: Mapping[str, Any]) -> nn.Module:
    """Build the T5 encoder of a config.json."""
    from transformers import T5Config, T5EncoderModel

    return _build(T5EncoderModel, T5Config, config)


def make_clip(config: Mapping[str, Any]) -> nn.Module:
    """Build the CLIP text encoder with projection of a config.json."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    model: Any = _build(CLIPTextModelWithProjection, CLIPTextConfig, config)
    _keep_places(model.text_model.embeddings, model.config.max_position_embeddings)
    built: nn.Module = model
    return built


def make_clip_vision(config: Mapping[str, Any]) -> nn.Module:
    """Build the CLIP image encoder with projection of a config.json."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model: Any = _build(CLIPVisionModelWithProjection, CLIPVisionConfig, config)
    embeddings = model.vision_model.embeddings
    _keep_places(embeddings, embeddings.num_positions)
    built: nn.Module = model
    return built


def _build(kind: Any, configuration: Any, config: Mapping[str, Any]) -> nn.Module:
    fields = {key: value for key, value in config.items() if key not in {"torch_dtype", "dtype"}}
    # SDPA with a bias does not trace with a free length.
    model: nn.Module = kind._from_config(
        configuration.from_dict(fields), attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def _keep_places(embeddings: Any, count: int) -> None:
    """Make the numbers of the places real: a buffer that no checkpoint stores has no values while it is traced."""
    del embeddings.position_ids
    with unset_fake_temporarily():
        embeddings.position_ids = torch.arange(count, device="cpu").unsqueeze(0)
