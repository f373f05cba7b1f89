"""Train the Blocks transformer and its text encoder together by OneDiffusion's recipe: see models/blocks/README.md."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from batches import Batch, BatchMaker
from dense import rotary_tables, run_layer, velocity
from losses import EVERY, Losses
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from stop import Stop, Timer
from torch import Tensor, nn
from trainer import Trainer
from transformers import T5Config, T5EncoderModel
from wordpieces import EXTRA_IDS, encode

from framert.export.models.nextdit import NextDiT, NextDiTConfig

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
TEXT_LENGTH = 40  # holds every prompt of Blocks, so that compiled code sees one length
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.3", "base_image_seq_len": 256,
    "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
    "use_dynamic_shifting": True,
}  # fmt: skip


def transformer_config(hidden: int, depth: int, heads: int, kv_heads: int, patch: int, side: int) -> dict[str, object]:
    """Return transformer/config.json: the published keys and the side in pixels that the model is trained at."""
    return {
        "_class_name": "NextDiT", "_diffusers_version": "0.30.3", "caption_channels": 128, "depth": depth,
        "ffn_dim_multiplier": None, "hidden_size": hidden, "in_channels": 16, "input_size": [1, side // 8, side // 8],
        "model_max_length": 512, "multiple_of": 32, "native_side": side, "norm_eps": 1e-5, "norm_type": "rms",
        "num_heads": heads, "num_kv_heads": kv_heads, "patch_size": [1, patch, patch], "pred_sigma": False,
        "qk_norm": True, "rotary_max_length": 128, "rotary_max_length_t": None,
    }  # fmt: skip


class Blocks(nn.Module):
    """The parts that learn together: ``transformer`` and ``text_encoder``."""

    def __init__(self, config: dict[str, object], pieces: int) -> None:
        super().__init__()
        self.config = config
        self.transformer = NextDiT(NextDiTConfig.from_checkpoint(config))
        self.text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=pieces + EXTRA_IDS, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4,
                feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
                decoder_start_token_id=0, tie_word_embeddings=False,
            )
        )  # fmt: skip
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Begin with open gates: a closed text gate would leave the prompt to be found last of all."""
        hidden = self.transformer.config.hidden_size
        for block in self.transformer.blocks():
            block.attention.gate.fill_(0.6)
            modulation = block.adaLN_modulation[1]
            modulation.weight.normal_(0, 0.02)
            modulation.bias.zero_()
            modulation.bias[hidden : 2 * hidden] = modulation.bias[3 * hidden :] = 0.3
        nn.init.zeros_(self.transformer.final_layer.linear.weight)
        nn.init.zeros_(self.transformer.final_layer.linear.bias)

    def loss(
        self,
        samples: Tensor,
        target: Tensor,
        levels: Tensor,
        weight: Tensor,
        ids: Tensor,
        rotary: tuple[Tensor, Tensor],
        layer: Callable[..., Tensor] = run_layer,
    ) -> Tensor:
        """Return the mean squared velocity error (batch,) over the frames that count; shapes as in ``Batch``."""
        mask = ids != 0
        text = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        output = velocity(self.transformer, samples, levels, text, mask, rotary, layer)
        error = (output.float() - target).square().mean((2, 3))
        return (error * weight).sum(1) / weight.sum(1)

    def save(self, folder: Path) -> None:
        """Write transformer/, text_encoder/, scheduler/ and model_index.json in half precision."""
        for name in ("transformer", "scheduler"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "transformer" / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        weights = {name: value.half().contiguous() for name, value in self.transformer.state_dict().items()}
        part = folder / "transformer" / ".part"  # a stop leaves the old weights or the new ones
        save_file(weights, part, metadata={"format": "pt"})
        os.replace(part, folder / "transformer" / WEIGHTS_NAME)
        encoder = T5EncoderModel(self.text_encoder.config)
        encoder.load_state_dict(self.text_encoder.state_dict())
        encoder.half().save_pretrained(folder / "text_encoder")
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
        index = {
            "_class_name": "OneDiffusionPipeline", "_diffusers_version": "0.30.3",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
            "vae": ["diffusers", "AutoencoderKL"],
        }  # fmt: skip
        (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        weights = {name: value.float() for name, value in load_file(folder / "transformer" / WEIGHTS_NAME).items()}
        self.transformer.load_state_dict(weights)
        encoder = T5EncoderModel.from_pretrained(folder / "text_encoder").float()
        self.text_encoder.load_state_dict(encoder.state_dict())


def matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon takes a parameter: the matrices of the layers."""
    return parameter.ndim == 2 and (".attention.w" in name or ".feed_forward.w" in name)


def train_transformer(
    trainer: Trainer,
    model: Blocks,
    maker: BatchMaker,
    tokenizer: SentencePieceProcessor,
    losses: Losses,
    *,
    minutes: float | None,
    device: str,
    compiled: bool,
    report: Callable[[str], None],
    output: Path,
) -> None:
    """Train until the schedule or ``minutes`` of wall clock end, or SIGTERM; save every few minutes and then."""
    layer = torch.compile(run_layer, dynamic=False) if compiled else run_layer

    def loss_of(part: Batch, rotary: tuple[Tensor, Tensor]) -> Tensor:
        ids = pad([encode(tokenizer, prompt) for prompt in part.prompts]).to(device)
        with torch.autocast(device, torch.bfloat16):
            return model.loss(*(value.to(device) for value in part.tensors), ids, rotary, layer)

    def save() -> None:
        losses.write()
        trainer.save()
        trainer.average.save(output)

    timer, stopped = Timer(minutes), Stop()
    while not (stopped or timer.over or trainer.step >= (trainer.schedule.steps or np.inf)):
        with timer.step(trainer):
            batch = maker.draw()
            rotary = rotary_tables(model.transformer, batch.samples.shape[1], int(batch.samples.shape[2] ** 0.5))
            gradients, errors = trainer.gradients(
                [partial(loss_of, part, rotary) for part in batch.parts(trainer.threads)]
            )
            trainer.update(gradients)
            losses.add(batch.tasks, torch.cat(errors).tolist())
        if trainer.step % EVERY == 0:
            row = losses.row(trainer.step, trainer.seconds, trainer.cpu_seconds)
            values = [row[task] for task in losses.tasks if task in row]
            report(f"step {trainer.step} {trainer.seconds / 60:.1f} min loss {np.mean(values):.4f}")
        if timer.due:
            save()
    save()
    report(f"step {trainer.step}: weights in {output}")


def pad(rows: list[list[int]]) -> Tensor:
    """Return ids (batch, longest, rounded up to TEXT_LENGTH) with 0 behind the shorter ones."""
    longest = -(-max(map(len, rows)) // TEXT_LENGTH) * TEXT_LENGTH
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])
