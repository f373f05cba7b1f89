"""The checkpoint folder of Blocks, in diffusers' layout: what both families' transformers write and read alike."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from wordpieces import EXTRA_IDS

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
TEXT_WIDTH = 128


def make_text_encoder(pieces: int) -> T5EncoderModel:
    """Return a small T5 encoder for ``pieces`` word pieces, untrained, that begins with a sense of order."""
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=pieces + EXTRA_IDS, d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=3, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    table = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        table.add_(order_bias(encoder.config))
    return encoder


def order_bias(config: T5Config) -> Tensor:
    """Return what is added to the relative biases (buckets, heads) that T5 begins with, which see hardly any order.

    Four heads look at the words before, the words behind, the words around, and at all words before. Which colour
    belongs to which thing is said by order alone; encoders that began without gave a thing's word the same vector
    whichever of two colours was its own.
    """
    half = config.relative_attention_num_buckets // 2
    reach = torch.arange(half).clamp(max=half // 2).float()  # single distances first, then ever wider buckets
    near, never = -reach, torch.full((half,), -4.0)
    before, behind = [near, never, near / 2, 0 * reach], [never, near, near / 2, never]  # keys behind come second
    return torch.cat((torch.stack(before, 1), torch.stack(behind, 1)))


def save_parts(
    folder: Path,
    config: Mapping[str, object],
    transformer: nn.Module,
    text_encoder: T5EncoderModel,
    scheduler: Mapping[str, object],
    pipeline: str,
) -> None:
    """Write transformer/, text_encoder/, scheduler/ and model_index.json in half precision.

    Args:
        config: of transformer/config.json, with its _class_name. pipeline: _class_name of model_index.json.
    """
    for name in ("transformer", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in transformer.state_dict().items()}
    part = folder / "transformer" / ".part"  # a stop leaves the old weights or the new ones
    save_file(weights, part, metadata={"format": "pt"})
    os.replace(part, folder / "transformer" / WEIGHTS_NAME)
    encoder = T5EncoderModel(text_encoder.config)
    encoder.load_state_dict(text_encoder.state_dict())
    encoder.half().save_pretrained(folder / "text_encoder")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    index = {
        "_class_name": pipeline, "_diffusers_version": "0.30.3",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def load_parts(folder: Path, transformer: nn.Module, text_encoder: T5EncoderModel) -> None:
    """Read the weights that ``save_parts`` wrote into fp32 modules."""
    weights = {name: value.float() for name, value in load_file(folder / "transformer" / WEIGHTS_NAME).items()}
    transformer.load_state_dict(weights)
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder").float()
    text_encoder.load_state_dict(encoder.state_dict())
