"""What the published OneDiffusion code computes, written plainly in eager PyTorch: the side framert is timed against.

It is deliberately unhoisted, as the published code is: every modulation row is computed per token, text keys and values
are projected again at every step from text padded to 300 tokens, q, k and v (and the feed-forward's w1 and w3) are
linears of their own, rotation goes through a complex table, and guidance is a batch of two. Nothing is made slower than
it has to be for that: the noise level is embedded once per frame, text attention is torch's fused operator, and the
softcap's and the logits' scales are one multiplication.

Source: OneDiffusion, arXiv:2411.16318, and the tensor names of its public checkpoint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SOFTCAP = 30.0
TEXT_TOKENS = 300  # prompts are padded to this length

SelfAttention = Literal["softcap", "sdpa", "flash"]


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def rotary_table(head_dim: int, frames: int, side: int) -> Tensor:
    """Return (frames, side, side, head_dim / 2) complex64: the rotations of the whole grid of frame, row, column."""
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 6, dtype=torch.float32) / head_dim)
    axes = [torch.outer(torch.arange(length, dtype=torch.float32), frequency) for length in (frames, side, side)]
    grid = torch.broadcast_tensors(axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :])
    angle = torch.cat(grid, dim=-1)
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent pairs. x: (batch, tokens, heads, head_dim); table: (tokens, head_dim / 2) complex."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Self-attention over all frames, plus gated text attention on the same rotated queries."""

    def __init__(self, config: Mapping[str, Any], attention: SelfAttention) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = config["hidden_size"], config["num_heads"], config["num_kv_heads"]
        self.head_dim = width // self.heads
        self.attention = attention
        kv_width, text = self.kv_heads * self.head_dim, config["caption_channels"]
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, kv_width, bias=False)
        self.wv = nn.Linear(width, kv_width, bias=False)
        self.wk_y = nn.Linear(text, kv_width, bias=False)
        self.wv_y = nn.Linear(text, kv_width, bias=False)
        self.gate = nn.Parameter(torch.zeros(self.heads))
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm = nn.LayerNorm(width)
        self.k_norm = nn.LayerNorm(kv_width)
        self.ky_norm = nn.LayerNorm(kv_width, eps=1e-6)

    def forward(self, x: Tensor, table: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """x: (batch, tokens, width); text: (batch, length, channels); text_mask: (batch, length) bool, True = read."""
        q = rotate(self.q_norm(self.wq(x)).unflatten(-1, (self.heads, -1)), table).transpose(1, 2)
        k = rotate(self.k_norm(self.wk(x)).unflatten(-1, (self.kv_heads, -1)), table).transpose(1, 2)
        v = self.wv(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if self.attention == "softcap":
            logits = SOFTCAP * torch.tanh(q @ k.transpose(-1, -2) * (self.head_dim**-0.5 / SOFTCAP))
            out = torch.softmax(logits, dim=-1) @ v
        elif self.attention == "flash":
            from flash_attn import flash_attn_func

            out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), softcap=SOFTCAP).transpose(1, 2)
        else:
            out = functional.scaled_dot_product_attention(q, k, v)
        text_k = self.ky_norm(self.wk_y(text)).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        text_v = self.wv_y(text).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        # Text heads are tiled where a sequence's own are repeated: query head h reads text head h % kv_heads.
        text_k, text_v = text_k.repeat(1, group, 1, 1), text_v.repeat(1, group, 1, 1)
        cross = functional.scaled_dot_product_attention(q, text_k, text_v, attn_mask=text_mask[:, None, None])
        out = out + cross * self.gate.tanh()[:, None, None]
        return self.wo(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, multiple = config["hidden_size"], config["multiple_of"]
        inner = int((config.get("ffn_dim_multiplier") or 1) * int(2 * 4 * width / 3))
        inner = -(-inner // multiple) * multiple
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: Mapping[str, Any], attention: SelfAttention) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["norm_eps"]
        self.attention = Attention(config, attention)
        self.feed_forward = FeedForward(config)
        self.attention_norm1 = RMSNorm(width, eps)
        self.attention_norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.ffn_norm2 = RMSNorm(width, eps)
        self.attention_y_norm = RMSNorm(config["caption_channels"], eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), 4 * width))

    def forward(self, x: Tensor, table: Tensor, text: Tensor, text_mask: Tensor, condition: Tensor) -> Tensor:
        scale, gate, ffn_scale, ffn_gate = self.adaLN_modulation(condition).chunk(4, dim=-1)
        mixed = self.attention(self.attention_norm1(x) * (1 + scale), table, self.attention_y_norm(text), text_mask)
        x = x + gate.tanh() * self.attention_norm2(mixed)
        return x + ffn_gate.tanh() * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + ffn_scale)))


class FinalLayer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"][-1]
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, patch * patch * config["in_channels"])
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(width, 1024), width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(self.norm_final(x) * (1 + self.adaLN_modulation(condition)))


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        frequency = torch.exp(-torch.arange(128, device=timesteps.device) * (torch.log(torch.tensor(10000.0)) / 128))
        angle = timesteps.float().unsqueeze(-1) * frequency.to(timesteps.device)
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1).to(self.mlp[0].weight.dtype))


class PublishedNextDiT(nn.Module):
    """The transformer on frame tensors; its parameters have the published checkpoint's names."""

    table: Tensor

    def __init__(self, config: Mapping[str, Any], *, attention: SelfAttention = "softcap") -> None:
        super().__init__()
        width, text = config["hidden_size"], config["caption_channels"]
        self.patch, self.channels = config["patch_size"][-1], config["in_channels"]
        self.x_embedder = nn.Linear(self.patch**2 * self.channels, width)
        self.t_embedder = TimestepEmbedder(min(width, 1024))
        self.y_embedder = nn.Sequential(nn.LayerNorm(text, eps=1e-6), nn.Linear(text, min(width, 1024)))
        self.layers = nn.ModuleList(Block(config, attention) for _ in range(config["depth"]))
        self.final_layer = FinalLayer(config)
        side = config["rotary_max_length"]
        frames = config.get("rotary_max_length_t") or side
        # Not a buffer: .to(bfloat16) must leave it complex64.
        self.table = rotary_table(width // config["num_heads"], frames, side)

    def forward(self, samples: Tensor, timesteps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the velocity, shaped as ``samples``.

        Args:
            samples: (batch, frames, channels, height, width) latents.
            timesteps: (frames,) or (batch, frames), in 0..1000.
            text: (batch, length, caption_channels), the text encoder's output.
            text_mask: (batch, length), nonzero where a token is not padding.
        """
        batch, frames, _, height, width = samples.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        # (batch, frames, C, rows, p, columns, p)
        patches = samples.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))
        x = self.x_embedder(patches.permute(0, 1, 3, 5, 4, 6, 2).flatten(-3).flatten(1, 3))
        table = self.table[:frames, :rows, :columns].to(x.device).flatten(0, 2)

        mask = text_mask.to(text.dtype).unsqueeze(-1)
        pooled = (text * mask).sum(1) / mask.sum(1)
        level = self.t_embedder(timesteps.expand(batch, frames)).repeat_interleave(rows * columns, dim=1)
        condition = level + self.y_embedder(pooled).unsqueeze(1)  # (batch, tokens, width): one row per token

        text_mask = text_mask.bool()
        for layer in self.layers:
            x = layer(x, table, text, text_mask, condition)
        out = self.final_layer(x, condition)
        out = out.unflatten(-1, (p, p, self.channels)).unflatten(1, (frames, rows, columns))
        return out.permute(0, 1, 6, 2, 4, 3, 5).flatten(-2).flatten(-3, -2)


def build(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    attention: SelfAttention = "softcap",
    dtype: torch.dtype = torch.float32,
) -> PublishedNextDiT:
    """Return the model with a checkpoint's tensors.

    "softcap" writes attention out, "flash" is flash-attn's (a GPU, half precision), and "sdpa" leaves the softcap out,
    which flatters it.

    Args:
        config: transformer/config.json of the published layout.
        state: tensors under their published names, all of them and no others.
    """
    model = PublishedNextDiT(config, attention=attention)
    model.load_state_dict(state, assign=True)  # sides that share a dtype share their weights
    return model.to(dtype).eval().requires_grad_(False)


@dataclass(slots=True)
class GuidedStep:
    """One Euler step under guidance, as the published pipeline takes it: a batch of (negative, prompt).

    model: PublishedNextDiT, or torch.compile of it. text: (2, length, channels) and text_mask: (2, length), negative
    prompt first, padded to TEXT_TOKENS here, once.
    """

    model: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    text: Tensor
    text_mask: Tensor
    guidance: float
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        padding = TEXT_TOKENS - self.text.shape[1]
        self.text = functional.pad(self.text, (0, 0, 0, padding)).to(self.dtype)
        self.text_mask = functional.pad(self.text_mask, (0, padding))

    @torch.inference_mode()
    def __call__(self, latents: Tensor, timesteps: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next latents and the guided velocity, (frames, channels, height, width) each.

        Args:
            latents: (frames, channels, height, width), fp32.
            timesteps: (frames,), in 0..1000; delta: (frames,), change of the noise level (sigma), 0 for a condition.
        """
        samples = latents.to(self.dtype).expand(2, *latents.shape)
        negative, positive = self.model(samples, timesteps, self.text, self.text_mask).float()
        velocity = negative + self.guidance * (positive - negative)
        return latents + delta[:, None, None, None] * velocity, velocity
