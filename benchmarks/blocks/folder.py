"""The checkpoint folder of Blocks, in diffusers' layout: what both families' transformers write and read alike."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def save_parts(
    folder: Path,
    config: Mapping[str, object],
    transformer: nn.Module,
    scheduler: Mapping[str, object],
    pipeline: str,
) -> None:
    """Write transformer/ in half precision, scheduler/ and model_index.json.

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
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    index = {
        "_class_name": pipeline, "_diffusers_version": "0.30.3",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def load_transformer(folder: Path, transformer: nn.Module) -> None:
    """Read the weights that ``save_parts`` wrote into an fp32 module."""
    weights = {name: value.float() for name, value in load_file(folder / "transformer" / WEIGHTS_NAME).items()}
    transformer.load_state_dict(weights)
