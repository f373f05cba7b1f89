"""UniVG's transformer on Blocks: see docs/univg.md for what is the paper's."""

from collections.abc import Callable
from pathlib import Path

import torch
from channel_batches import ChannelBatch
from dense_mmdit import position_table, velocity
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from folder import load_transformer, save_parts
from sentencepiece import SentencePieceProcessor
from text_encoder import WIDTH as TEXT_WIDTH
from text_encoder import encode_text, pad
from torch import Tensor, nn
from transformer import TEXT_LENGTH
from transformers import T5EncoderModel
from wordpieces import encode, placeholder_id

from framert.export.models.mmdit import MMDiT
from framert.export.models.mmdit_config import MMDiTConfig

CHANNELS = 16  # of a latent
POSITIONS = 16  # side of the table, in tokens: twice that of the pictures trained on, for every listed shape
POOLED_WIDTH = 16  # there is no CLIP: the pooled text is zeros, and its layers only say so in the published layout
GATE = 0.3  # that layers begin with, in both streams: closed, the text would be found last of all
SHIFT = 1.6  # of the schedule: what Blocks' dynamic shift is at 64 tokens
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.3", "num_train_timesteps": 1000,
    "shift": SHIFT, "use_dynamic_shifting": False,
}  # fmt: skip


def transformer_config(hidden: int, depth: int, heads: int, patch: int, side: int) -> dict[str, object]:
    """Return transformer/config.json as diffusers' SD3Transformer2DModel has it; side: of the pictures, in pixels."""
    return {
        "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.30.3", "attention_head_dim": hidden // heads,
        "caption_projection_dim": hidden, "dual_attention_layers": [], "in_channels": 2 * CHANNELS + 1,
        "joint_attention_dim": TEXT_WIDTH, "num_attention_heads": heads, "num_layers": depth,
        "out_channels": CHANNELS, "patch_size": patch, "pooled_projection_dim": POOLED_WIDTH,
        "pos_embed_max_size": POSITIONS, "qk_norm": "rms_norm", "sample_size": side // 8,
    }  # fmt: skip


class ChannelBlocks(nn.Module):
    """What learns: ``transformer``."""

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__()
        self.config = config
        self.transformer = MMDiT(MMDiTConfig.from_checkpoint(config))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        hidden = self.transformer.config.hidden_size
        table = get_2d_sincos_pos_embed(hidden, POSITIONS, base_size=POSITIONS, output_type="pt")
        self.transformer.pos_embed.pos_embed.copy_(table.float())
        for block in self.transformer.blocks():
            for modulation in (block.norm1, block.norm1_context):
                modulation.linear.weight.normal_(0, 0.02)
                bias = modulation.linear.bias.zero_().view(-1, hidden)
                bias[2::3] = GATE  # shift, scale and gate, of attention and of the feed-forward
        for linear in (self.transformer.norm_out.linear, self.transformer.proj_out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        last = self.transformer.blocks()[-1].attn
        for module in (last.add_q_proj, last.norm_added_q):  # in the published layout, and never read
            for parameter in module.parameters():
                parameter.zero_()
                parameter.requires_grad = False

    def loss(
        self, samples: Tensor, target: Tensor, levels: Tensor, conditions: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the mean squared velocity error (batch,); shapes as in ``ChannelBatch``.

        text: (batch, length, TEXT_WIDTH); mask: (batch, length), true where there is a word.
        """
        side = int(samples.shape[1] ** 0.5)
        positions = position_table(self.transformer, side, side)
        output = velocity(self.transformer, samples, levels, text, mask, positions, conditions)
        return (output.float() - target).square().mean((1, 2))

    def save(self, folder: Path) -> None:
        """Write transformer/ in half precision, scheduler/ and model_index.json."""
        save_parts(folder, self.config, self.transformer, SCHEDULER, "StableDiffusion3Pipeline")

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        load_transformer(folder, self.transformer)


def matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon takes a parameter: the matrices of the layers' attentions and feed-forwards."""
    return parameter.ndim == 2 and (".attn." in name or ".ff." in name or ".ff_context." in name)


def loss_of(
    model: ChannelBlocks,
    text_encoder: T5EncoderModel,
    tokenizer: SentencePieceProcessor,
    device: str,
    *,
    compiled: bool,
) -> Callable[[ChannelBatch], Tensor]:
    """Return what gives a batch's losses (sequences,)."""
    run = torch.compile(model.loss, dynamic=False) if compiled else model.loss
    placeholder = placeholder_id(tokenizer.get_piece_size())
    multiple = TEXT_LENGTH if compiled else 4  # compiled code sees one length; else padding is only work

    def loss(part: ChannelBatch) -> Tensor:
        ids = pad([encode(tokenizer, prompt) for prompt in part.prompts], multiple).to(device)
        with torch.autocast(device, torch.bfloat16):
            *tensors, features = (value.to(device) for value in part.tensors)
            text = encode_text(text_encoder, ids, features, placeholder)
            return run(*tensors, text, ids != 0)

    return loss
