"""What a good engineer would write in a day: the published model in plain PyTorch with everything hoisted that can be.

Modulation rows and text keys and values are computed before the first step, q, k and v are one product, gate and up
another, norm weights are folded into the modulation, and the model is meant to run under torch.compile for one shape.
Attention is either exact (softcap in plain operators) or torch's fused one without the softcap, which is another model
and a faster one. It takes one size at a time, which is what framert does not ask for.

Source: OneDiffusion, arXiv:2411.16318, and the tensor names of its public checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import torch
from baseline import SOFTCAP, PublishedNextDiT, SelfAttention, rotary_table
from torch import Tensor, nn
from torch.nn import functional


def rms(x: Tensor, eps: float) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps)``, in fp32 inside."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate adjacent pairs. x: (batch, tokens, heads, head_dim); cosine, sine: (tokens, 1, head_dim / 2) fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2).to(x.dtype)


class HoistedNextDiT(nn.Module):
    """One shape of the model: ``frames`` frames of ``rows`` x ``columns`` tokens, two guidance branches.

    Args:
        published: the published model with its weights, in fp32 or the dtype to run in; they are fused, not copied
            where they need not be.
        attention: "softcap" is exact, "sdpa" leaves the softcap out.
    """

    def __init__(
        self,
        published: PublishedNextDiT,
        config: Mapping[str, Any],
        *,
        frames: int,
        rows: int,
        columns: int,
        attention: SelfAttention = "softcap",
    ) -> None:
        super().__init__()
        self.attention = attention
        self.heads, self.kv_heads, self.eps = config["num_heads"], config["num_kv_heads"], config["norm_eps"]
        self.head_dim = config["hidden_size"] // self.heads
        self.frames, self.rows, self.columns, self.patch = frames, rows, columns, published.patch
        self.x_embedder, self.out = published.x_embedder, published.final_layer.linear
        self.layers = published.layers
        self.channels = published.channels
        weight = published.x_embedder.weight
        table = rotary_table(self.head_dim, frames, max(rows, columns))[:, :rows, :columns].flatten(0, 2)
        # Buffers, not plain tensors: CUDA graphs of torch.compile copy everything else in every call.
        self.register_buffer("cosine", table.real.unsqueeze(1).contiguous().to(weight.device))
        self.register_buffer("sine", table.imag.unsqueeze(1).contiguous().to(weight.device))
        self.qkv = nn.ParameterList(
            nn.Parameter(torch.cat([own.wq.weight, own.wk.weight, own.wv.weight]), requires_grad=False)
            for own in (layer.attention for layer in published.layers)
        )
        self.gate_up = nn.ParameterList(
            nn.Parameter(torch.cat([own.w1.weight, own.w3.weight]), requires_grad=False)
            for own in (layer.feed_forward for layer in published.layers)
        )

    def forward(self, latents: Tensor, modulation: Tensor, text_k: Tensor, text_v: Tensor, text_mask: Tensor) -> Tensor:
        """Return the velocities (2, frames, channels, height, width) of both branches.

        Args:
            latents: (frames, channels, height, width) in the model's dtype; both branches read the same.
            modulation: (4 * depth + 1, 2, frames, 1, width), see ``condition``.
            text_k, text_v: (depth, 2, heads, length, head_dim), already one per query head.
            text_mask: (2, 1, 1, length) bool, True where text is.
        """
        p, tokens = self.patch, self.frames * self.rows * self.columns
        patches = latents.unflatten(-1, (self.columns, p)).unflatten(-3, (self.rows, p)).permute(0, 2, 4, 3, 5, 1)
        x = self.x_embedder(patches.flatten(-3).flatten(0, 2)).expand(2, tokens, -1)
        for index, layer in enumerate(self.layers):
            enter, leave, ffn_enter, ffn_leave = modulation[4 * index : 4 * index + 4]
            mixed = self._attend(self._scaled(x, enter), layer.attention, index, text_k, text_v, text_mask)
            x = x + self._scaled(mixed, leave)
            gate, up = functional.linear(self._scaled(x, ffn_enter), self.gate_up[index]).chunk(2, dim=-1)
            x = x + self._scaled(layer.feed_forward.w2(functional.silu(gate) * up), ffn_leave)
        last = functional.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)
        out = self.out(self._per_frame(last, modulation[-1]))
        out = out.unflatten(-1, (p, p, self.channels)).unflatten(1, (self.frames, self.rows, self.columns))
        return out.permute(0, 1, 6, 2, 4, 3, 5).flatten(-2).flatten(-3, -2)

    def _scaled(self, x: Tensor, multiplier: Tensor) -> Tensor:
        return self._per_frame(rms(x, self.eps), multiplier)

    def _per_frame(self, x: Tensor, multiplier: Tensor) -> Tensor:
        """Multiply (2, tokens, width) by one row per frame, (2, frames, 1, width)."""
        return (x.unflatten(1, (self.frames, -1)) * multiplier).flatten(1, 2)

    def _attend(
        self, x: Tensor, attention: nn.Module, index: int, text_k: Tensor, text_v: Tensor, text_mask: Tensor
    ) -> Tensor:
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        q, k, v = functional.linear(x, self.qkv[index]).split((width, kv_width, kv_width), dim=-1)
        q, k = (
            attention.q_norm(q).unflatten(-1, (self.heads, -1)),
            attention.k_norm(k).unflatten(-1, (self.kv_heads, -1)),
        )
        q, k = (rotate(each, self.cosine, self.sine).transpose(1, 2) for each in (q, k))
        v = v.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        if self.attention == "sdpa" and x.is_cuda:
            own = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            group = self.heads // self.kv_heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            if self.attention == "sdpa":
                own = functional.scaled_dot_product_attention(q, k, v)
            else:
                logits = SOFTCAP * torch.tanh(q @ k.transpose(-1, -2) * (self.head_dim**-0.5 / SOFTCAP))
                own = torch.softmax(logits.float(), dim=-1).to(v.dtype) @ v
        text = functional.scaled_dot_product_attention(q, text_k[index], text_v[index], attn_mask=text_mask)
        out = own + text * attention.gate.tanh()[:, None, None]
        return attention.wo(out.transpose(1, 2).flatten(-2))


@torch.inference_mode()
def condition(
    published: PublishedNextDiT, text: Tensor, text_mask: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what ``HoistedNextDiT`` reads instead of prompts and noise levels, for one step.

    Args:
        text: (2, length, caption_channels), negative prompt first; text_mask: (2, length), nonzero where text is.
        timesteps: (frames,), in 0..1000.
    Returns: modulation (4 * depth + 1, 2, frames, 1, width), text keys and values (depth, 2, heads, length, head_dim),
        and the mask (2, 1, 1, length).
    """
    weight = published.x_embedder.weight
    text, mask = text.to(weight.dtype), text_mask.to(weight.dtype).unsqueeze(-1)
    level = published.t_embedder(timesteps)
    rows = level + published.y_embedder((text * mask).sum(1) / mask.sum(1)).unsqueeze(1)  # (2, frames, width)
    modulation, keys, values = [], [], []
    for layer in published.layers:
        scale, gate, ffn_scale, ffn_gate = layer.adaLN_modulation(rows).chunk(4, dim=-1)
        modulation += [
            layer.attention_norm1.weight * (1 + scale),
            layer.attention_norm2.weight * gate.tanh(),
            layer.ffn_norm1.weight * (1 + ffn_scale),
            layer.ffn_norm2.weight * ffn_gate.tanh(),
        ]
        attention, normed = layer.attention, layer.attention_y_norm(text)
        group = attention.heads // attention.kv_heads  # text heads are tiled, not repeated
        keys.append(attention.ky_norm(attention.wk_y(normed)).unflatten(-1, (attention.kv_heads, -1)).transpose(1, 2)
                    .repeat(1, group, 1, 1))  # fmt: skip
        values.append(attention.wv_y(normed).unflatten(-1, (attention.kv_heads, -1)).transpose(1, 2)
                      .repeat(1, group, 1, 1))  # fmt: skip
    modulation.append(1 + published.final_layer.adaLN_modulation(rows))
    stacked = torch.stack(modulation).unsqueeze(3)
    return stacked, torch.stack(keys), torch.stack(values), text_mask.bool()[:, None, None]


class Conditioned(nn.Module):
    """The model with its prompts and noise levels in place: latents are all that is left to give."""

    def __init__(self, model: HoistedNextDiT, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        super().__init__()
        self.model = model
        for name, value in zip(("modulation", "text_k", "text_v", "text_mask"), inputs, strict=True):
            self.register_buffer(name, value)

    def forward(self, latents: Tensor) -> Tensor:
        return self.model(latents, self.modulation, self.text_k, self.text_v, self.text_mask)


class HoistedStep:
    """One Euler step under guidance on one shape; everything that can be is computed before the first.

    Args:
        published: with its weights on their device. compiled: run under torch.compile, for this shape alone.
        text, text_mask, timesteps: see ``condition``; text is not padded.
        shape: (rows, columns) of a frame's tokens.
    """

    def __init__(
        self,
        published: PublishedNextDiT,
        config: Mapping[str, Any],
        text: Tensor,
        text_mask: Tensor,
        timesteps: Tensor,
        *,
        shape: tuple[int, int],
        guidance: float,
        attention: SelfAttention = "softcap",
        compiled: bool = True,
    ) -> None:
        frames, (rows, columns) = len(timesteps), shape
        model = HoistedNextDiT(published, config, frames=frames, rows=rows, columns=columns, attention=attention)
        whole = Conditioned(model, condition(published, text, text_mask, timesteps))
        self._dtype = published.x_embedder.weight.dtype
        self._guidance = guidance
        mode = "reduce-overhead" if text.is_cuda else "default"  # CUDA graphs, where there are any
        self._model = torch.compile(whole, dynamic=False, mode=mode) if compiled else whole

    @torch.inference_mode()
    def __call__(self, latents: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next latents and the guided velocity, (frames, channels, height, width) fp32 each.

        Args:
            latents: (frames, channels, height, width), fp32. delta: (frames,), change of sigma, 0 for a condition.
        """
        negative, positive = self._model(latents.to(self._dtype)).float()
        velocity = negative + self._guidance * (positive - negative)
        return latents + delta[:, None, None, None] * velocity, velocity
