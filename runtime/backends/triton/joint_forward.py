"""The step of an MM-DiT over packed tokens: image and text in streams of their own that meet in attention."""

import torch
from torch import Tensor
from torch.nn import functional

from framert.kernels.dispatch import Impl
from framert.kernels.gated_residual.api import gated_residual
from framert.kernels.norm_modulate.api import norm_modulate
from framert.runtime.backends.triton.joint_attention import JointAttention
from framert.runtime.backends.triton.joint_weights import FeedForward, JointWeights, Modulated
from framert.runtime.backends.triton.model import Arenas, TokenTables
from framert.runtime.backends.triton.products import Activation, only, quantized
from framert.runtime.backends.triton.settings import Settings


class JointModel:
    """The step of UniVG and of Stable Diffusion 3.

    Args:
        weights: as ``joint_weights.read`` returns them. settings: dtypes and implementation.
    """

    text_axis = 0

    def __init__(self, weights: JointWeights, settings: Settings) -> None:
        self.weights = weights
        self._settings = settings

    def empty(self) -> Arenas:
        """Return arenas without rows: of text tokens as they enter the first layer, (capacity, hidden)."""
        settings, hidden = self._settings, len(self.weights.embed)
        text = torch.zeros(0, hidden, dtype=settings.residual, device=settings.device)
        rows = torch.zeros(0, self.weights.modulations, hidden, dtype=settings.modulation, device=settings.device)
        return Arenas(text=(text,), modulation=rows, cache=())

    def velocity(self, arenas: Arenas, tables: TokenTables, latents: Tensor) -> Tensor:
        weights, impl, kind = self.weights, self._settings.impl, self.weights.quantize
        assert tables.text_source is not None
        assert tables.text_frame is not None
        attend = JointAttention(tables, weights, impl)
        x = self._embedded(tables, latents).to(self._settings.residual)
        y = arenas.text[0].index_select(0, tables.text_source)
        image = _Stream(x, tables.frame, tables.row, arenas.modulation, weights, impl)
        text = _Stream(y, tables.text_frame, tables.row, arenas.modulation, weights, impl)
        x_in, y_in = image.entering(weights.blocks[0].image), text.entering(weights.blocks[0].text)
        for block, following in zip(weights.blocks, (*weights.blocks[1:], None), strict=True):
            own = block.attention
            assert own.text is not None
            image_heads, text_heads = own.image(x_in), own.text(y_in)
            if own.text_out is None:
                mixed, mixed_text = attend.joint_to_image(image_heads, text_heads, own.norms), None
            else:
                mixed, mixed_text = attend.joint(image_heads, text_heads, own.norms)
            added = own.image_out(quantized(mixed, kind, impl))
            if block.second is None or block.image_second is None:
                x_in = image.add(added, block.image, block.image_fed)
            else:  # of the stream before the first attention is added
                second = block.second.image(image.entering(block.image_second))
                image.add(added, block.image)
                more = block.second.image_out(quantized(attend.image(second, block.second.norms), kind, impl))
                x_in = image.add(more, block.image_second, block.image_fed)
            fed = self._fed(block.image_feed, x_in)
            if following is None:
                x_in = image.add(fed, block.image_fed, weights.final_norm, last=True)
            else:
                x_in = image.add(fed, block.image_fed, following.image)
                assert mixed_text is not None
                assert own.text_out is not None
                assert block.text_fed is not None
                assert block.text_feed is not None
                y_in = text.add(own.text_out(quantized(mixed_text, kind, impl)), block.text, block.text_fed)
                y_in = text.add(self._fed(block.text_feed, y_in), block.text_fed, following.text)
        assert isinstance(x_in, Tensor)
        return functional.linear(x_in.float(), weights.final, weights.final_bias)

    def _embedded(self, tables: TokenTables, latents: Tensor) -> Tensor:
        """Return the image tokens before the first layer, (tokens, hidden) fp32."""
        weights = self.weights
        x = functional.linear(latents, weights.embed, weights.embed_bias).index_select(0, tables.source)
        _, row, column = tables.position.unbind(1)
        x = x + weights.positions.index_select(0, row * weights.side + column)
        if tables.conditions is not None:
            assert weights.shown is not None
            assert tables.condition_source is not None
            x = x + functional.linear(tables.conditions, weights.shown).index_select(0, tables.condition_source)
        return x

    def _fed(self, feed: FeedForward, x: Activation) -> Tensor:
        inner = functional.gelu(feed.up(x), approximate="tanh")
        return feed.down(quantized(inner, self.weights.quantize, self._settings.impl))


class _Stream:
    """The residual stream of one kind of tokens during a call, and what is read from it between branches."""

    def __init__(
        self, x: Tensor, frame: Tensor, row: Tensor, modulation: Tensor, weights: JointWeights, impl: Impl
    ) -> None:
        self._x = x
        self._frame = frame
        self._row = row
        self._modulation = modulation
        self._weights = weights
        self._impl = impl

    def entering(self, at: Modulated) -> Activation:
        """Return the normed and modulated stream, as a product takes it."""
        weights = self._weights
        made = norm_modulate(
            self._x, self._modulation[:, at.multiplier], self._row, self._frame, eps=weights.eps, center=True,
            shift=self._modulation[:, at.shift], quantize=weights.quantize, impl=self._impl,
        )  # fmt: skip
        return made if isinstance(made, tuple) else made.to(weights.dtype)

    def add(self, branch: Tensor, at: Modulated, then: Modulated | None = None, *, last: bool = False) -> Activation:
        """Add a gated branch; return what enters the next one, ``then``, or the sum where none follows directly.

        last: what is returned is for a product that takes no quantized values.
        """
        assert at.gate is not None
        gate = self._modulation[:, at.gate]
        if then is None:
            self._x = gated_residual(self._x, branch, gate, self._row, self._frame, eps=None, impl=self._impl)
            return self._x
        self._x, *entering = gated_residual(
            self._x, branch, gate, self._row, self._frame, eps=None,
            next_multiplier=self._modulation[:, then.multiplier], next_eps=self._weights.eps, next_center=True,
            next_shift=self._modulation[:, then.shift], quantize=None if last else self._weights.quantize,
            impl=self._impl,
        )  # fmt: skip
        return only(entering)
