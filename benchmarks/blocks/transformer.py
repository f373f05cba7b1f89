"""The Blocks transformer, trained by OneDiffusion's recipe: see models/blocks/README.md."""

from collections.abc import Callable
from pathlib import Path

import torch
from batches import Batch
from dense import rotary_tables, run_layer, velocity
from folder import load_transformer, save_parts
from sentencepiece import SentencePieceProcessor
from text_encoder import WIDTH as TEXT_WIDTH
from text_encoder import pad
from torch import Tensor, nn
from transformers import T5EncoderModel
from wordpieces import encode

from framert.export.models.nextdit import NextDiT, NextDiTConfig

TEXT_LENGTH = 40  # holds every prompt of Blocks, so that compiled code sees one length
RECOMPILATIONS = 64
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.3", "base_image_seq_len": 256,
    "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
    "use_dynamic_shifting": True,
}  # fmt: skip


def transformer_config(hidden: int, depth: int, heads: int, kv_heads: int, patch: int, side: int) -> dict[str, object]:
    """Return transformer/config.json: the published keys and the side in pixels that the model is trained at."""
    return {
        "_class_name": "NextDiT", "_diffusers_version": "0.30.3", "caption_channels": TEXT_WIDTH, "depth": depth,
        "ffn_dim_multiplier": None, "hidden_size": hidden, "in_channels": 16, "input_size": [1, side // 8, side // 8],
        "model_max_length": 512, "multiple_of": 32, "native_side": side, "norm_eps": 1e-5, "norm_type": "rms",
        "num_heads": heads, "num_kv_heads": kv_heads, "patch_size": [1, patch, patch], "pred_sigma": False,
        "qk_norm": True, "rotary_max_length": 128, "rotary_max_length_t": None,
    }  # fmt: skip


class Blocks(nn.Module):
    """What learns: ``transformer``."""

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__()
        self.config = config
        self.transformer = NextDiT(NextDiTConfig.from_checkpoint(config))
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
        text: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        layer: Callable[..., Tensor] = run_layer,
    ) -> Tensor:
        """Return the mean squared velocity error (batch,) over the frames that count; shapes as in ``Batch``.

        text: (batch, length, TEXT_WIDTH); mask: (batch, length), true where there is a word.
        """
        output = velocity(self.transformer, samples, levels, text, mask, rotary, layer)
        error = (output.float() - target).square().mean((2, 3))
        return (error * weight).sum(1) / weight.sum(1)

    def save(self, folder: Path) -> None:
        """Write transformer/ in half precision, scheduler/ and model_index.json."""
        save_parts(folder, self.config, self.transformer, SCHEDULER, "OneDiffusionPipeline")

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        load_transformer(folder, self.transformer)


def matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon takes a parameter: the matrices of the layers."""
    return parameter.ndim == 2 and (".attention.w" in name or ".feed_forward.w" in name)


def loss_of(
    model: Blocks, text_encoder: T5EncoderModel, tokenizer: SentencePieceProcessor, device: str, *, compiled: bool
) -> Callable[[Batch], Tensor]:
    """Return what gives a batch's losses (sequences,)."""
    layer = torch.compile(run_layer, dynamic=False) if compiled else run_layer

    def loss(part: Batch) -> Tensor:
        # each number of frames and each kind of layer is a graph of its own; settings are those of the calling thread
        torch._dynamo.config.recompile_limit = RECOMPILATIONS
        ids = pad([encode(tokenizer, prompt) for prompt in part.prompts], TEXT_LENGTH).to(device)
        rotary = rotary_tables(model.transformer, part.samples.shape[1], int(part.samples.shape[2] ** 0.5))
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
            return model.loss(*(value.to(device) for value in part.tensors), text, ids != 0, rotary, layer)

    return loss
