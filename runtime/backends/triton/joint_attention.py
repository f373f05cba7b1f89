"""Attention over the image and the text of each sequence, from tables on the device: both under one softmax."""

import torch
from torch import Tensor

from framert.kernels.dispatch import Impl
from framert.kernels.frame_attention.api import frame_attention
from framert.kernels.norm_modulate.api import norm_modulate
from framert.runtime.backends.triton.joint_weights import JointWeights
from framert.runtime.backends.triton.model import TokenTables, query_tile


class JointAttention:
    """The attentions of one call. Queries stand as the streams do, the image's tokens and then the text's.

    Keys and values stand in the joint order: each sequence's image, then its text, so that one range holds both. Text
    tokens beyond those of the tables come last and are in no range: nobody reads them, and they get zeros.
    """

    def __init__(self, tables: TokenTables, weights: JointWeights, impl: Impl) -> None:
        assert tables.text_source is not None
        self._weights = weights
        self._impl = impl
        self._image_range, self._image_keys = tables.q_range, tables.kv_range
        tokens, words = len(tables.source), len(tables.text_source)
        self._tokens = tokens
        self._image_place, self._text_place = places(tables.q_range, tables.text_range, tokens, words)
        begin, length = tables.text_range.unbind(1)
        text_queries = torch.stack((begin + tokens, length), 1)
        joint = tables.kv_range + tables.text_range  # a sequence begins behind all image and all text before it
        self._queries, self._keys = torch.cat((tables.q_range, text_queries)), torch.cat((joint, joint))
        self._joint = joint
        self._row = torch.arange(4, dtype=torch.int32, device=joint.device)
        self._alone = self._norm_of(torch.zeros_like(tables.source), torch.zeros_like(tables.source))
        standing = (torch.arange(tokens + words, device=joint.device) >= tokens).to(torch.int32)
        ordered = torch.zeros_like(standing).index_fill_(0, self._text_place, 1)
        self._both = self._norm_of(standing, ordered)

    def joint(self, image: Tensor, text: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend from both streams to both: image (tokens, 3 * hidden) and text, query, key and value each.

        Returns: (tokens, hidden) and (words, hidden). norms: see ``joint_weights.Attention``.
        """
        mixed = self._attend(*self._together(image, text, norms), self._queries, self._keys)
        return mixed[: self._tokens], mixed[self._tokens :]

    def joint_to_image(self, image: Tensor, text: Tensor, norms: Tensor | None) -> Tensor:
        """Attend from the image alone to both; text: (words, 2 * hidden), key and value."""
        query, key, value = self._together(image, text, norms)
        return self._attend(query[: self._tokens], key, value, self._image_range, self._joint)

    def image(self, image: Tensor, norms: Tensor | None) -> Tensor:
        """Attend from the image to the image."""
        heads, count = self._heads(image), self._weights.heads
        query_key = self._normed(heads[:, : 2 * count], norms, self._alone)
        value = heads[:, 2 * count :]
        return self._attend(query_key[:, :count], query_key[:, count:], value, self._image_range, self._image_keys)

    def _together(self, image: Tensor, text: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of both streams in their places, (tokens + words, heads, head_dim) each."""
        own, other, count = self._heads(image), self._heads(text), self._weights.heads
        rows = len(own) + len(other)
        query_key = own.new_empty(rows, 2 * count, own.shape[2])
        value = own.new_empty(rows, count, own.shape[2])
        query_key[: len(own), :count] = own[:, :count]
        # the last layer's text has no queries, and nobody reads what is made of zeros
        query_key[len(own) :, :count] = other[:, :count] if other.shape[1] == 3 * count else 0
        for heads, place in ((own, self._image_place), (other, self._text_place)):
            query_key[:, count:].index_copy_(0, place, heads[:, -2 * count : -count])
            value.index_copy_(0, place, heads[:, -count:])
        query_key = self._normed(query_key, norms, self._both)
        return query_key[:, :count], query_key[:, count:], value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        mixed: Tensor = frame_attention(
            query, key, value, queries, keys, softcap=0.0, scale=self._weights.scale, impl=self._impl,
            query_tile=query_tile(len(value)),
        )  # fmt: skip
        return mixed.flatten(1)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(len(projected), -1, self._weights.head_dim)

    def _norm_of(self, query: Tensor, key: Tensor) -> Tensor:
        """Return which of ``norms`` each row's heads take, flat int32; query, key: (rows,), 1 where a row is text's."""
        pair = torch.stack((2 * query, 2 * key + 1), 1)
        return pair.repeat_interleave(self._weights.heads, dim=1).flatten()

    def _normed(self, query_key: Tensor, norms: Tensor | None, which: Tensor) -> Tensor:
        """Return queries and keys after the norm of each head, which is norm_modulate's with heads for tokens."""
        if norms is None:
            return query_key
        flat = query_key.reshape(-1, query_key.shape[-1])
        normed = norm_modulate(flat, norms, self._row, which, eps=self._weights.eps, impl=self._impl)
        return normed.view(query_key.shape)


def places(q_range: Tensor, text_range: Tensor, tokens: int, words: int) -> tuple[Tensor, Tensor]:
    """Return the places of image tokens and of text tokens in the joint order, (tokens,) and (words,) int64.

    Queries cover all tokens in order; text tokens beyond those of ``text_range`` come behind all others. Computed
    where the ranges lie, without reading them.
    """
    begins, lengths = q_range.long().unbind(1)
    text_begins, text_lengths = text_range.long().unbind(1)
    index = torch.arange(tokens, device=q_range.device)
    text_index = torch.arange(words, device=q_range.device)
    # An image token moves back by the texts of the sequences before its own, a text token by the images up to it.
    before = torch.where(index[:, None] >= begins + lengths, text_lengths, 0)
    up_to = torch.where(text_index[:, None] >= text_begins, lengths, 0)
    return index + before.sum(1), text_index + up_to.sum(1)
