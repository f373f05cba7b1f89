"""MM-DiT on dense batches of equally long sequences: the runtime's blocks, with an attention that trains fast."""

import torch
from torch import Tensor
from torch.nn import functional

from framert.export.models.joint_attention import Heads, grid_positions
from framert.export.models.mmdit import MMDiT


def velocity(
    model: MMDiT,
    samples: Tensor,
    levels: Tensor,
    text: Tensor,
    text_mask: Tensor,
    positions: Tensor,
    conditions: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Tensor:
    """Return the velocity (batch, tokens, token_width) of dense sequences.

    Args:
        samples: (batch, tokens, token_width), tokens row by row.
        levels: (batch,), noise levels in 0..1000.
        text: (batch, length, text_width); text_mask: (batch, length), True on tokens that count.
        positions: (tokens, hidden) of ``position_table``.
        conditions: (batch, tokens, condition_width), latent and mask of the condition, where the model takes them.
        pooled: (batch, pooled_width), the pooled text; None for zeros.
    """
    words, modulation = model.condition(text, levels, pooled)
    x = model.pos_embed.latents(samples)
    if conditions is not None:
        x = x + model.pos_embed.conditions(conditions)

    def everywhere(index: int) -> Tensor:
        return modulation[:, index].unsqueeze(1)

    return model.transform(x.float() + positions, words.float(), everywhere, everywhere, DenseAttention(text_mask))


def position_table(model: MMDiT, rows: int, columns: int) -> Tensor:
    """Return what the positions of a picture of rows x columns tokens add, (rows * columns, hidden)."""
    position = grid_positions(rows, columns, model.config.positions)
    return model.pos_embed.positions(position.to(model.pos_embed.pos_embed.device))


class DenseAttention:
    """``Attend`` of a batch, in the dtype of the values. Heads are (batch, tokens, heads, head_dim).

    Args:
        text_mask: (batch, length), True on tokens that count.
    """

    def __init__(self, text_mask: Tensor) -> None:
        self._text_mask = text_mask

    def joint(self, image: Heads, text: Heads) -> tuple[Tensor, Tensor]:
        query = torch.cat((image[0], text[0]), dim=1)
        mixed = self.joint_to_image(query, image[1:], text[1:])
        tokens = image[0].shape[1]
        return mixed[:, :tokens], mixed[:, tokens:]

    def joint_to_image(self, query: Tensor, image: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> Tensor:
        key, value = (torch.cat(pair, dim=1) for pair in zip(image, text, strict=True))
        seen = torch.cat((self._text_mask.new_ones(key.shape[0], image[0].shape[1]), self._text_mask), dim=1)
        return _attend(query, key, value, seen[:, None, None])

    def image(self, image: Heads) -> Tensor:
        return _attend(*image, None)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    heads = (part.to(value.dtype).transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2)
