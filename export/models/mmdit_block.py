"""One layer of Stable Diffusion 3's transformer, and the parts it is made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from framert.export.models.joint_attention import Attend, Heads
from framert.export.models.mmdit_config import MMDiTConfig
from framert.export.models.nextdit import Scale, rms_norm

NORM_EPS = 1e-6  # of every norm of the family


class Modulation(nn.Module):
    """The multipliers of one norm: ``linear(silu(condition))``, with 1 added to those that scale."""

    def __init__(self, width: int, count: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.count = count
        self.scales = scales
        self.linear = nn.Linear(width, count * width)

    def forward(self, activated: Tensor) -> Tensor:
        """Return (..., count, hidden) of activated conditions (..., hidden)."""
        given = self.linear(activated).chunk(self.count, dim=-1)
        return torch.stack([1 + part if index in self.scales else part for index, part in enumerate(given)], dim=-2)


class TwoLayers(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(functional.silu(self.linear_1(x)))


class Attention(nn.Module):
    """Projections of one attention: of the image, and of the text where it takes part."""

    def __init__(self, config: MMDiTConfig, *, text: bool, last: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = (Scale(config.head_dim) if config.qk_norm else None for _ in range(2))
        if text:
            self.add_q_proj = nn.Linear(width, width)
            self.add_k_proj = nn.Linear(width, width)
            self.add_v_proj = nn.Linear(width, width)
            self.norm_added_q, self.norm_added_k = (Scale(config.head_dim) if config.qk_norm else None for _ in "qk")
            if not last:
                self.to_add_out = nn.Linear(width, width)

    def project(self, x: Tensor) -> Heads:
        """Return the image's query, key and value."""
        return (
            self._heads(self.to_q(x), self.norm_q),
            self._heads(self.to_k(x), self.norm_k),
            self._heads(self.to_v(x), None),
        )

    def project_text_keys(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.add_k_proj(y), self.norm_added_k), self._heads(self.add_v_proj(y), None)

    def project_text(self, y: Tensor) -> Heads:
        """Return the text's query, key and value."""
        return self._heads(self.add_q_proj(y), self.norm_added_q), *self.project_text_keys(y)

    def leave(self, mixed: Tensor) -> Tensor:
        return self.to_out[0](mixed.flatten(-2))

    def leave_text(self, mixed: Tensor) -> Tensor:
        return self.to_add_out(mixed.flatten(-2))

    def _heads(self, x: Tensor, norm: Scale | None) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))  # type: ignore[no-untyped-call]  # torch leaves it out
        return heads if norm is None else rms_norm(heads, NORM_EPS) * norm.weight


class Gelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": Gelu(width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net["2"](self.net["0"](x))


def norm(x: Tensor) -> Tensor:
    """Return x with mean 0 and variance 1 over its last axis."""
    return functional.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)


class Block(nn.Module):
    """One layer of both streams. The finished multipliers come from ``modulation``; ``last`` updates no text."""

    def __init__(self, config: MMDiTConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.last = layer == config.depth - 1
        self.image_count, self.text_count = config.image_count(layer), config.text_count(layer)
        self.norm1 = Modulation(width, self.image_count, (1, 4, 7))
        self.norm1_context = Modulation(width, self.text_count, (0,) if self.last else (1, 4))
        self.attn = Attention(config, text=True, last=self.last)
        self.attn2 = Attention(config, text=False) if layer in config.dual else None
        self.ff = FeedForward(width)
        self.ff_context = None if self.last else FeedForward(width)

    def modulation(self, activated: Tensor) -> Tensor:
        """Return (..., count, hidden): shift, 1 + scale and gate of attention, feed-forward and second attention.

        The text's follow the image's; of the last layer's text: 1 + scale and shift.
        """
        return torch.cat((self.norm1(activated), self.norm1_context(activated)), dim=-2)

    def forward(
        self, x: Tensor, y: Tensor, image: tuple[Tensor, ...], text: tuple[Tensor, ...], attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """Run the layer on image tokens x (..., hidden) and text tokens y (..., hidden) with their multipliers."""
        entering = norm(x)
        heads = self.attn.project(entering * image[1] + image[0])
        if self.last:
            keys = self.attn.project_text_keys(norm(y) * text[0] + text[1])
            mixed = attend.joint_to_image(heads[0], heads[1:], keys)
        else:
            mixed, mixed_text = attend.joint(heads, self.attn.project_text(norm(y) * text[1] + text[0]))
            y = y + self.attn.leave_text(mixed_text) * text[2]
        x = x + self.attn.leave(mixed) * image[2]
        if self.attn2 is not None:
            x = x + self.attn2.leave(attend.image(self.attn2.project(entering * image[7] + image[6]))) * image[8]
        x = x + self.ff(norm(x) * image[4] + image[3]) * image[5]
        if self.ff_context is not None:
            y = y + self.ff_context(norm(y) * text[4] + text[3]) * text[5]
        return x, y
