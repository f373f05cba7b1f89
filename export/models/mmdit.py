"""Stable Diffusion 3's transformer, packed and driven by tables: what is traced, and the oracle of ``verify``.

Two streams, image and text, with weights of their own and one attention over both. Parameter names equal those of
diffusers' SD3Transformer2DModel. With more channels in than out it is UniVG's: the latent of a condition and its mask
stand beside the noisy latent, channel by channel. The blocks work on any leading axes a caller packs tokens into.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from framert.export.models.joint_attention import Attend, PackedAttention, grid_positions, picture_tokens
from framert.export.models.mmdit_block import Block, Modulation, TwoLayers, norm
from framert.export.models.mmdit_config import LAST, MMDiTConfig
from framert.export.models.nextdit import TIME_WIDTH, sinusoid
from framert.kernels.frame_attention import reference


class TimeText(nn.Module):
    """The condition of all modulations: of the noise level and the pooled text."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.pooled_width = config.pooled_width
        self.timestep_embedder = TwoLayers(TIME_WIDTH, config.hidden_size)
        self.text_embedder = TwoLayers(config.pooled_width, config.hidden_size)

    def forward(self, noise_level: Tensor, pooled: Tensor | None) -> Tensor:
        """Return (..., hidden). noise_level: (...), in 0..1000; pooled: (..., pooled_width), None for zeros."""
        if pooled is None:
            pooled = torch.zeros(self.pooled_width, dtype=noise_level.dtype, device=noise_level.device)
        return self.timestep_embedder(sinusoid(noise_level)) + self.text_embedder(pooled)


class PatchEmbed(nn.Module):
    """Token embedding and the table of positions, (1, positions * positions, hidden), row by row."""

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch)
        self.register_buffer("pos_embed", torch.zeros(1, config.positions**2, config.hidden_size))

    def latents(self, x: Tensor) -> Tensor:
        """Return (..., hidden) of latent tokens (..., token_width), without the positions."""
        return functional.linear(x, self._weight()[..., : self.config.out_channels].flatten(1), self.proj.bias)

    def conditions(self, x: Tensor) -> Tensor:
        """Return what condition tokens (..., condition_width) add to it."""
        return functional.linear(x, self._weight()[..., self.config.out_channels :].flatten(1))

    def positions(self, position: Tensor) -> Tensor:
        """Return (..., hidden) of positions (..., 3): frame (not read), row and column in the table."""
        _, row, column = position.long().unbind(-1)
        return functional.embedding(row * self.config.positions + column, self.pos_embed.squeeze(0))

    def _weight(self) -> Tensor:
        return self.proj.weight.permute(0, 2, 3, 1)  # (hidden, row, column, channel), as a token's values lie


class MMDiT(nn.Module):
    """The transformer, split where the runtime splits it.

    ``condition`` runs once per prompt and schedule, ``denoise`` once per step.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_embed = PatchEmbed(config)
        self.time_text_embed = TimeText(config)
        self.context_embedder = nn.Linear(config.text_width, config.hidden_size)
        self.transformer_blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm_out = Modulation(config.hidden_size, LAST, (0,))
        self.proj_out = nn.Linear(config.hidden_size, config.token_width)

    def blocks(self) -> list[Block]:
        return list(self.transformer_blocks)  # type: ignore[arg-type]  # ModuleList does not name its element type

    def condition(
        self, hidden_states: Tensor, noise_level: Tensor, pooled: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Precompute all that depends on the prompt and the noise levels alone.

        Args:
            hidden_states: (..., length, text_width), the text encoder's output.
            noise_level: (rows,), in 0..1000.
            pooled: (pooled_width,), the pooled text; None stands for zeros.
        Returns: the text tokens that enter the first layer, (..., length, hidden_size), and the modulation,
            (rows, modulation_count, hidden_size).
        """
        return self.context_embedder(hidden_states), self.modulation(self.time_text_embed(noise_level, pooled))

    def modulation(self, condition: Tensor) -> Tensor:
        """Return the finished multipliers, (..., modulation_count, hidden), of conditions (..., hidden)."""
        activated = functional.silu(condition)
        rows = [block.modulation(activated) for block in self.blocks()]
        return torch.cat((*rows, self.norm_out(activated)), dim=-2)

    def transform(
        self,
        x: Tensor,
        y: Tensor,
        image: Callable[[int], Tensor],
        text: Callable[[int], Tensor],
        attend: Attend,
    ) -> Tensor:
        """Run all layers on embedded tokens; return the velocity of the image tokens, (..., token_width).

        image, text: give the multiplier of that index in a modulation row for every token of their stream.
        """
        first = 0
        for block in self.blocks():
            second = first + block.image_count
            after = second + block.text_count
            own = tuple(image(index) for index in range(first, second))
            x, y = block(x, y, own, tuple(text(index) for index in range(second, after)), attend)
            first = after
        return self.proj_out(norm(x) * image(first) + image(first + 1))

    @torch.no_grad()
    def velocity(
        self,
        picture: Tensor,
        noise_level: float,
        hidden_states: Tensor,
        pooled: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity (out_channels, height, width) of one picture by one branch, without guidance.

        Args:
            picture: (out_channels, height, width), the noisy latent; sides are multiples of ``patch``.
            noise_level: in 0..1000.
            hidden_states: (length, text_width). pooled: (pooled_width,), None for zeros.
            condition: (condition_channels, height, width), the condition's latent and its mask, where the model takes
                them.
        """
        config, patch = self.config, self.config.patch
        _, height, width = picture.shape
        rows, columns = height // patch, width // patch
        level = torch.tensor([noise_level], dtype=picture.dtype, device=picture.device)
        y, modulation = self.condition(hidden_states, level, pooled)
        x = self.pos_embed.latents(picture_tokens(picture, patch))
        if condition is not None:
            x = x + self.pos_embed.conditions(picture_tokens(condition, patch))
        position = grid_positions(rows, columns, config.positions).to(picture.device)
        whole = torch.tensor([[0, rows * columns]], dtype=torch.int32, device=picture.device)
        words = torch.tensor([[0, len(y)]], dtype=torch.int32, device=picture.device)
        attend = PackedAttention(config.head_dim, whole, whole, words, len(x), len(y), reference.frame_attention)
        multiplier = modulation[0].__getitem__
        tokens = self.transform(x + self.pos_embed.positions(position), y, multiplier, multiplier, attend)
        grid = tokens.view(rows, columns, patch, patch, config.out_channels)
        return grid.permute(4, 0, 2, 1, 3).reshape(config.out_channels, height, width)

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
        text: Tensor,
        text_source: Tensor,
        text_frame: Tensor,
        text_range: Tensor,
        guidance_index: Tensor,
        guidance_weight: Tensor,
        update: Tensor,
        conditions: Tensor | None = None,
        condition_source: Tensor | None = None,
        attention: Callable[..., Tensor] = reference.frame_attention,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one solver step of everything in the pack.

        Args:
            latents, history: (slots, token_width); every latent token once, and the solver's buffer.
            source: (tokens,) int32, the slot that feeds each model token.
            position: (tokens, 3) int32: 0, row and column in the table of positions, see ``grid_positions``.
            frame: (tokens,) int32, the packed frame of each token; row: (frames,) int32, its modulation row.
            modulation: (rows, modulation_count, hidden_size), see ``condition``.
            q_range, kv_range: (sequences, 2) int32, begin and length of each sequence's image tokens; queries cover
                all of them in order.
            text: (capacity, hidden_size), the arena of ``condition``'s text tokens.
            text_source: (text tokens,) int32, the arena row of each text token; text_frame: the packed frame whose
                modulation it takes.
            text_range: (sequences, 2) int32, begin and length among the text tokens; they cover all of them in order.
            guidance_index: (slots, branches) int32, tokens whose velocities are combined; guidance_weight alike.
            update: (slots, 6), the solver's row: x' = a x + b v + c h, h' = d x + e v + f h.
            conditions: (condition rows, condition_width), where the model takes one; condition_source: (tokens,) int32,
                the row that each model token is shown.
            attention: the implementation of ``kernels.frame_attention`` to use.
        Returns: latents, history and the combined velocity, (slots, token_width) each.
        """
        source, frame, row, guidance_index = source.long(), frame.long(), row.long(), guidance_index.long()
        multipliers, text_row = modulation.index_select(0, row), text_frame.long()
        x = self.pos_embed.latents(latents).index_select(0, source) + self.pos_embed.positions(position)
        if conditions is not None and condition_source is not None:
            x = x + self.pos_embed.conditions(conditions).index_select(0, condition_source.long())
        y = text.index_select(0, text_source.long())

        def per_token(index: int) -> Tensor:
            return multipliers.select(1, index).index_select(0, frame)

        def per_word(index: int) -> Tensor:
            return multipliers.select(1, index).index_select(0, text_row)

        attend = PackedAttention(self.config.head_dim, q_range, kv_range, text_range, x.shape[0], y.shape[0], attention)
        output = self.transform(x, y, per_token, per_word, attend)
        branches = guidance_weight.shape[1]
        weights = guidance_weight.chunk(branches, dim=1)
        velocity = output.index_select(0, guidance_index.select(1, 0)) * weights[0]
        for branch in range(1, branches):  # in this order: the same bits everywhere
            velocity = velocity + output.index_select(0, guidance_index.select(1, branch)) * weights[branch]
        a, b, c, d, e, f = update.chunk(6, dim=1)
        return a * latents + b * velocity + c * history, d * latents + e * velocity + f * history, velocity
