"""Attention over the image and the text of each sequence: what a block asks for, and how a pack answers."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Heads = tuple[Tensor, Tensor, Tensor]  # query, key and value, (..., heads, head_dim) each


class Attend(Protocol):
    """The attentions of one call, however its tokens lie."""

    def joint(self, image: Heads, text: Heads) -> tuple[Tensor, Tensor]:
        """Attend from both streams to both, under one softmax."""

    def joint_to_image(self, query: Tensor, image: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from the image alone to the keys and values of both streams."""

    def image(self, image: Heads) -> Tensor:
        """Attend from the image to the image."""


class PackedAttention:
    """``Attend`` of a pack: each sequence's image tokens, then its text tokens, stand together in one joint order.

    Args:
        q_range, kv_range, text_range: see ``MMDiT.denoise``.
        tokens, words: image and text tokens of the pack.
        attention: the implementation of ``kernels.frame_attention`` to use.
    """

    def __init__(
        self,
        head_dim: int,
        q_range: Tensor,
        kv_range: Tensor,
        text_range: Tensor,
        tokens: int,
        words: int,
        attention: Callable[..., Tensor],
    ) -> None:
        self._attention = attention
        self._scale = head_dim**-0.5
        self._q_range, self._kv_range = q_range, kv_range
        self._joint_q, self._joint_kv = q_range + text_range, kv_range + text_range
        # An image token moves back by the texts of the sequences before its own, a text token by the images up to it.
        begins, lengths = q_range.long().unbind(1)
        text_begins, text_lengths = text_range.long().unbind(1)
        index = torch.arange(tokens, device=q_range.device)
        text_index = torch.arange(words, device=q_range.device)
        before = (index.unsqueeze(1) >= begins + lengths).long() * text_lengths
        up_to = (text_index.unsqueeze(1) >= text_begins).long() * lengths
        self._image_place = index + before.sum(1)
        self._text_place = text_index + up_to.sum(1)
        place = torch.cat((self._image_place, self._text_place))
        self._order = torch.zeros_like(place).scatter(0, place, torch.arange(tokens + words, device=place.device))

    def joint(self, image: Heads, text: Heads) -> tuple[Tensor, Tensor]:
        query, key, value = (self._ordered(own, other) for own, other in zip(image, text, strict=True))
        mixed = self._attend(query, key, value, self._joint_q, self._joint_kv)
        return mixed.index_select(0, self._image_place), mixed.index_select(0, self._text_place)

    def joint_to_image(self, query: Tensor, image: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> Tensor:
        key, value = (self._ordered(own, other) for own, other in zip(image, text, strict=True))
        return self._attend(query, key, value, self._q_range, self._joint_kv)

    def image(self, image: Heads) -> Tensor:
        return self._attend(*image, self._q_range, self._kv_range)

    def _ordered(self, image: Tensor, text: Tensor) -> Tensor:
        return torch.cat((image, text)).index_select(0, self._order)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, q_range: Tensor, kv_range: Tensor) -> Tensor:
        return self._attention(query, key, value, q_range, kv_range, softcap=0.0, scale=self._scale)


def grid_positions(rows: int, columns: int, positions: int) -> Tensor:
    """Return (rows * columns, 3) int32 places of a picture's tokens in the table: its middle, as diffusers crops it."""
    down = torch.arange(rows, dtype=torch.int32) + (positions - rows) // 2
    across = torch.arange(columns, dtype=torch.int32) + (positions - columns) // 2
    grid = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)
    return functional.pad(grid, (1, 0))


def picture_tokens(picture: Tensor, patch: int) -> Tensor:
    """Return (tokens, patch * patch * channels) of a picture (channels, height, width)."""
    channels, height, width = picture.shape
    grid = picture.view(channels, height // patch, patch, width // patch, patch)
    return grid.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
