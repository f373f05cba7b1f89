"""Train the Blocks transformer and its text encoder together by OneDiffusion's recipe: see models/blocks/README.md."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from batches import BatchMaker
from dense import rotary_tables, velocity
from muon import Muon
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from wordpieces import EXTRA_IDS, encode

from framert.export.models.nextdit import NextDiT, NextDiTConfig

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
WARMUP_STEPS = 100
EMA_DECAY = 0.998
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
    ) -> Tensor:
        """Return the mean squared velocity error (batch,) over the frames that count; shapes as in ``Batch``."""
        mask = ids != 0
        text = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        output = velocity(self.transformer, samples, levels, text, mask, rotary)
        error = (output.float() - target).square().mean((2, 3))
        return (error * weight).sum(1) / weight.sum(1)

    def save(self, folder: Path) -> None:
        """Write transformer/, text_encoder/, scheduler/ and model_index.json in half precision."""
        for name in ("transformer", "scheduler"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "transformer" / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        weights = {name: value.half().contiguous() for name, value in self.transformer.state_dict().items()}
        save_file(weights, folder / "transformer" / WEIGHTS_NAME, metadata={"format": "pt"})
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


class Trainer:
    """Optimizers, moving average and their state on disk for one ``Blocks``."""

    def __init__(self, model: Blocks, average: Blocks, state: Path, rate: float) -> None:
        self.model, self.average, self.state, self.rate, self.step = model, average, state, rate, 0
        hidden = [
            parameter for name, parameter in model.transformer.named_parameters()
            if parameter.ndim == 2 and (".attention.w" in name or ".feed_forward.w" in name)
        ]  # fmt: skip
        chosen = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        self.optimizers = [
            Muon(hidden, lr=rate, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
        ]
        if state.exists():
            saved = torch.load(state, weights_only=True)
            model.load_state_dict(saved["model"])
            average.load_state_dict(saved["average"])
            for optimizer, value in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(value)
            self.step = saved["step"]

    def save(self) -> None:
        """Write the state beside and rename, so that a stop never leaves half a file."""
        saved = {
            "model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        part = self.state.with_suffix(".part")
        torch.save(saved, part)
        part.replace(self.state)

    def update(self, share: float) -> None:
        """Take one step; ``share`` of the time budget has passed, which sets the rate (warm-up, then cosine)."""
        factor = min(1, (self.step + 1) / WARMUP_STEPS) * (
            0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(share, 1)))
        )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1 - min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)


def train_transformer(
    trainer: Trainer,
    maker: BatchMaker,
    tokenizer: SentencePieceProcessor,
    *,
    minutes: float,
    device: str,
    compiled: bool,
    report: Callable[[str], None],
    output: Path,
) -> None:
    """Train for ``minutes`` of wall clock, saving the average to ``output`` every few minutes and at the end."""
    model, losses = trainer.model, defaultdict(lambda: 1.0)
    loss_of = torch.compile(model.loss) if compiled else model.loss
    begin = shown = saved = time.monotonic()
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        batch = maker.draw()
        ids = pad([encode(tokenizer, prompt) for prompt in batch.prompts]).to(device)
        rotary = rotary_tables(model.transformer, batch.samples.shape[1], int(batch.samples.shape[2] ** 0.5))
        with torch.autocast(device, torch.bfloat16):
            error = loss_of(*(value.to(device) for value in batch.tensors), ids, rotary)
        error.mean().backward()
        trainer.update(share)
        for task, value in zip(batch.tasks, error.tolist(), strict=True):
            losses[task] += 0.03 * (value - losses[task])
        now = time.monotonic()
        if now - shown > 30:
            shown = now
            summary = " ".join(f"{task} {value:.3f}" for task, value in sorted(losses.items()))
            mean = np.mean(list(losses.values()))
            report(f"step {trainer.step} {(now - begin) / 60:.1f} min loss {mean:.4f}: {summary}")
        if now - saved > 240:
            saved = now
            trainer.average.save(output)
            trainer.save()
    trainer.average.save(output)
    trainer.save()
    report(f"step {trainer.step}: done, weights in {output}")


def pad(rows: list[list[int]]) -> Tensor:
    """Return ids (batch, longest, rounded up to 8) with 0 behind the shorter ones."""
    longest = -(-max(map(len, rows)) // 8) * 8
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])
