"""OneDiffusion's transformer, packed and driven by tables: what is traced, and the oracle of ``verify``.

Parameter names equal the published checkpoint's. All methods work on any leading axes a caller packs tokens into,
so that training can run the same blocks on dense batches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from framert.export import traced
from framert.kernels.frame_attention import reference
from framert.runtime.errors import CheckpointError

ROTARY_BASE = 10000.0
TIME_WIDTH = 256  # width of the sinusoid under t_embedder

Attend = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextDiTConfig:
    """Shape of one NextDiT. patch: side of a token in latent pixels; rotary lengths: largest position + 1 per axis."""

    hidden_size: int
    depth: int
    num_heads: int
    num_kv_heads: int
    caption_channels: int
    in_channels: int
    patch: int
    multiple_of: int
    ffn_dim_multiplier: float | None
    norm_eps: float
    rotary_max_length: int
    rotary_max_length_t: int
    softcap: float = 30.0

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> "NextDiTConfig":
        """Read transformer/config.json of the published layout; keys left over from training are ignored.

        Raises: CheckpointError if a key is missing or names a variant this model does not have.
        """
        names = ("hidden_size", "depth", "num_heads", "num_kv_heads", "caption_channels", "in_channels", "patch_size")
        missing = [name for name in (*names, "multiple_of", "norm_eps", "rotary_max_length") if name not in config]
        if missing:
            raise CheckpointError(f"transformer/config.json lacks {', '.join(missing)}; a NextDiT config has them all")
        *time, height, width = config["patch_size"]
        if any(t != 1 for t in time) or height != width:
            raise CheckpointError(f"patch_size is {config['patch_size']}; supported: [1, p, p]")
        if not config.get("qk_norm", True) or config.get("pred_sigma", False):
            raise CheckpointError("transformer/config.json asks for qk_norm false or pred_sigma true; not supported")
        if config["num_heads"] % config["num_kv_heads"] or config["hidden_size"] % config["num_heads"]:
            raise CheckpointError("hidden_size must be a multiple of num_heads, and num_heads of num_kv_heads")
        if config["hidden_size"] // config["num_heads"] % 6:
            raise CheckpointError(
                "head_dim (hidden_size / num_heads) must be divisible by 6: three rotary axes of pairs"
            )
        return cls(
            hidden_size=config["hidden_size"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            num_kv_heads=config["num_kv_heads"],
            caption_channels=config["caption_channels"],
            in_channels=config["in_channels"],
            patch=height,
            multiple_of=config["multiple_of"],
            ffn_dim_multiplier=config.get("ffn_dim_multiplier"),
            norm_eps=config["norm_eps"],
            rotary_max_length=config["rotary_max_length"],
            rotary_max_length_t=config.get("rotary_max_length_t") or config["rotary_max_length"],
            softcap=config.get("softcap", 30.0),
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def token_width(self) -> int:
        """Values of one token: a patch of latent pixels, ordered (row, column, channel)."""
        return self.patch * self.patch * self.in_channels

    @property
    def condition_width(self) -> int:
        return min(self.hidden_size, 1024)

    @property
    def ffn_width(self) -> int:
        width = int(2 * 4 * self.hidden_size / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of

    @property
    def modulation_count(self) -> int:
        """Multipliers of one modulation row: four per layer and one for the final layer, hidden_size wide each."""
        return 4 * self.depth + 1


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps)`` over the last axis, without a weight."""
    if torch.compiler.is_exporting():
        return traced.rms_norm(x, eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i + 1]) of each head. x: (..., heads, head_dim); cosine: (..., head_dim / 2)."""
    if torch.compiler.is_exporting():
        return traced.rotate(x, cosine, sine)
    even, odd = x[..., 0::2], x[..., 1::2]
    cosine, sine = cosine.unsqueeze(-2), sine.unsqueeze(-2)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)


def sinusoid(noise_level: Tensor) -> Tensor:
    """Return the (..., 256) embedding of noise levels in 0..1000, cosines first."""
    half = TIME_WIDTH // 2
    exponent = -math.log(ROTARY_BASE) * torch.arange(half, dtype=noise_level.dtype, device=noise_level.device) / half
    angle = noise_level.unsqueeze(-1) * exponent.exp()
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Scale(nn.Module):
    """The learned weight of an RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    """Projections of one layer's self-attention and text attention."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, kv_width, bias=False)
        self.wv = nn.Linear(width, kv_width, bias=False)
        self.wk_y = nn.Linear(config.caption_channels, kv_width, bias=False)
        self.wv_y = nn.Linear(config.caption_channels, kv_width, bias=False)
        self.gate = nn.Parameter(torch.zeros(config.num_heads))
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm = nn.LayerNorm(width)
        self.k_norm = nn.LayerNorm(kv_width)
        self.ky_norm = nn.LayerNorm(kv_width, eps=1e-6)

    def project(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key (normed over concatenated heads, then rotated) and value: (..., heads, head_dim) each."""
        query, key, value = self.wq(x), self.wk(x), self.wv(x)
        heads = (-1, self.head_dim)
        return (
            rotate(self.q_norm(query).unflatten(-1, heads), cosine, sine),
            rotate(self.k_norm(key).unflatten(-1, heads), cosine, sine),
            value.unflatten(-1, heads),
        )

    def project_text(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return text keys (normed, never rotated) and values from normed text: (..., kv_heads, head_dim) each."""
        heads = (-1, self.head_dim)
        return self.ky_norm(self.wk_y(y)).unflatten(-1, heads), self.wv_y(y).unflatten(-1, heads)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.ffn_width, bias=False)
        self.w2 = nn.Linear(config.ffn_width, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.ffn_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer. The finished multipliers come from ``modulation``: nothing of the text or noise level enters here."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm1 = Scale(config.hidden_size)
        self.attention_norm2 = Scale(config.hidden_size)
        self.ffn_norm1 = Scale(config.hidden_size)
        self.ffn_norm2 = Scale(config.hidden_size)
        self.attention_y_norm = Scale(config.caption_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.condition_width, 4 * config.hidden_size))

    def modulation(self, condition: Tensor) -> Tensor:
        """Return (..., 4, hidden): w1 (1 + scale) and tanh(gate) w2, of attention and then of the feed-forward."""
        scale, gate, ffn_scale, ffn_gate = self.adaLN_modulation(condition).chunk(4, dim=-1)
        return torch.stack(
            (
                self.attention_norm1.weight * (1 + scale),
                self.attention_norm2.weight * gate.tanh(),
                self.ffn_norm1.weight * (1 + ffn_scale),
                self.ffn_norm2.weight * ffn_gate.tanh(),
            ),
            dim=-2,
        )

    def text(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return this layer's text keys and values, (..., kv_heads, head_dim) each."""
        return self.attention.project_text(rms_norm(hidden_states, self.eps) * self.attention_y_norm.weight)

    def forward(
        self,
        x: Tensor,
        multipliers: tuple[Tensor, Tensor, Tensor, Tensor],
        cosine: Tensor,
        sine: Tensor,
        attend: Attend,
    ) -> Tensor:
        """Run the layer on x (..., hidden); ``attend(query, key, value, gate)`` sees (..., heads, head_dim)."""
        enter, leave, ffn_enter, ffn_leave = multipliers
        query, key, value = self.attention.project(rms_norm(x, self.eps) * enter, cosine, sine)
        mixed = attend(query, key, value, self.attention.gate.tanh()).flatten(-2)
        x = x + rms_norm(self.attention.wo(mixed), self.eps) * leave
        return x + rms_norm(self.feed_forward(rms_norm(x, self.eps) * ffn_enter), self.eps) * ffn_leave


class FinalLayer(nn.Module):
    """Modulated LayerNorm (no affine) and the projection to a token's velocity."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.linear = nn.Linear(config.hidden_size, config.token_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.condition_width, config.hidden_size))

    def modulation(self, condition: Tensor) -> Tensor:
        return 1 + self.adaLN_modulation(condition)

    def forward(self, x: Tensor, multiplier: Tensor) -> Tensor:
        return self.linear(functional.layer_norm(x, (self.width,), eps=1e-6) * multiplier)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise_level: Tensor) -> Tensor:
        return self.mlp(sinusoid(noise_level))


class NextDiT(nn.Module):
    """The transformer, split where the runtime splits it.

    ``condition`` runs once per prompt and schedule, ``denoise`` once per step.
    """

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.token_width, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.condition_width)
        self.y_embedder = nn.Sequential(
            nn.LayerNorm(config.caption_channels, eps=1e-6),
            nn.Linear(config.caption_channels, config.condition_width),
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def blocks(self) -> list[Block]:
        return list(self.layers)  # type: ignore[arg-type]  # ModuleList does not name its element type

    def condition(self, hidden_states: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precompute all that depends on the prompt and the noise levels alone.

        Args:
            hidden_states: (length, caption_channels), the text encoder's output without padding.
            noise_level: (rows,), in 0..1000.
        Returns: text keys and text values, (depth, length, kv_heads, head_dim) each, and the modulation,
            (rows, 4 * depth + 1, hidden_size).
        """
        keys, values = zip(*(block.text(hidden_states) for block in self.blocks()), strict=True)
        condition = self.t_embedder(noise_level) + self.y_embedder(hidden_states.mean(0))
        return torch.stack(keys), torch.stack(values), self.modulation(condition)

    def modulation(self, condition: Tensor) -> Tensor:
        """Return the finished multipliers, (..., 4 * depth + 1, hidden), of conditions (..., condition_width)."""
        rows = [block.modulation(condition) for block in self.blocks()]
        return torch.cat((*rows, self.final_layer.modulation(condition).unsqueeze(-2)), dim=-2)

    def rotary(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, (..., head_dim / 2) each, of positions (..., 3): frame, row, column."""
        config, dtype = self.config, self.x_embedder.weight.dtype
        # A small table per axis: exact, and a token's values do not depend on its place in the pack, as those of a
        # vectorised cosine do.
        places = torch.arange(max(config.rotary_max_length, config.rotary_max_length_t), device=position.device)
        exact = torch.promote_types(dtype, torch.float32)
        exponent = torch.arange(config.head_dim // 6, device=position.device).to(exact) * (6 / config.head_dim)
        angle = places.unsqueeze(-1).to(exact) * ROTARY_BASE**-exponent
        index = position.long()
        cosine, sine = (functional.embedding(index, table.to(dtype)) for table in (angle.cos(), angle.sin()))
        return cosine.flatten(-2), sine.flatten(-2)

    def denoise(
        self,
        latents: Tensor,
        history: Tensor,
        source: Tensor,
        position: Tensor,
        frame: Tensor,
        row: Tensor,
        modulation: Tensor,
        q_range: Tensor,
        kv_range: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        text_range: Tensor,
        guidance_index: Tensor,
        guidance_weight: Tensor,
        update: Tensor,
        attention: Attend = reference.frame_attention,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one solver step of everything in the pack.

        Args:
            latents, history: (slots, token_width); every latent token once, and the solver's buffer.
            source: (tokens,) int32, the slot that feeds each model token.
            position: (tokens, 3) int32, frame index, row and column within the token's sequence.
            frame: (tokens,) int32, the packed frame of each token; row: (frames,) int32, its modulation row.
            modulation: (rows, 4 * depth + 1, hidden_size), see ``condition``.
            q_range, kv_range, text_range: (sequences, 2) int32, begin and length.
            text_k, text_v: (depth, capacity, kv_heads, head_dim), the text arena.
            guidance_index: (slots, branches) int32, tokens whose velocities are combined; guidance_weight alike.
            update: (slots, 6), the solver's row: x' = a x + b v + c h, h' = d x + e v + f h.
            attention: the implementation of ``kernels.frame_attention`` to use.
        Returns: latents, history and the combined velocity, (slots, token_width) each.
        """
        config = self.config
        source, frame, row, guidance_index = source.long(), frame.long(), row.long(), guidance_index.long()
        cosine, sine = self.rotary(position)
        multipliers = modulation.index_select(0, row)

        def per_token(index: int) -> Tensor:
            return multipliers.select(1, index).index_select(0, frame)

        x = self.x_embedder(latents).index_select(0, source)
        for index, block in enumerate(self.blocks()):

            def attend(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, layer: int = index) -> Tensor:
                return attention(
                    query, key, value, q_range, kv_range, text_k[layer], text_v[layer], text_range, gate,
                    softcap=config.softcap, scale=config.head_dim**-0.5,
                )  # fmt: skip

            four = (per_token(4 * index), per_token(4 * index + 1), per_token(4 * index + 2), per_token(4 * index + 3))
            x = block(x, four, cosine, sine, attend)
        output = self.final_layer(x, per_token(4 * config.depth))
        branches = guidance_weight.shape[1]
        weights = guidance_weight.chunk(branches, dim=1)
        velocity = output.index_select(0, guidance_index.select(1, 0)) * weights[0]
        for branch in range(1, branches):  # in this order: the same bits everywhere
            velocity = velocity + output.index_select(0, guidance_index.select(1, branch)) * weights[branch]
        a, b, c, d, e, f = update.chunk(6, dim=1)
        return a * latents + b * velocity + c * history, d * latents + e * velocity + f * history, velocity
