"""Shape of Stable Diffusion 3's transformer, read from a checkpoint's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framert.runtime.errors import CheckpointError

PLAIN, DUAL, LAST = 6, 9, 2  # multipliers of a stream: in a block, with a second attention, and before the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class MMDiTConfig:
    """Shape of one MM-DiT.

    patch: side of a token in latent pixels; positions: side of the table of positions, in tokens; dual: layers whose
    image stream has a second attention of its own.
    """

    depth: int
    num_heads: int
    head_dim: int
    text_width: int
    pooled_width: int
    in_channels: int
    out_channels: int
    patch: int
    positions: int
    dual: frozenset[int] = frozenset()
    qk_norm: bool = False

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> "MMDiTConfig":
        """Read transformer/config.json as diffusers writes it.

        Raises: CheckpointError if a key is missing or names a variant this model does not have.
        """
        names = (
            "num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim",
            "in_channels", "patch_size", "pos_embed_max_size",
        )  # fmt: skip
        if missing := [name for name in names if config.get(name) is None]:
            raise CheckpointError(
                f"transformer/config.json lacks {', '.join(missing)}; an SD3Transformer2DModel config has them all"
            )
        hidden = config["num_attention_heads"] * config["attention_head_dim"]
        if config.get("caption_projection_dim", hidden) != hidden:
            raise CheckpointError(
                f"caption_projection_dim is {config['caption_projection_dim']}; it must be {hidden}, the heads' width"
            )
        if config.get("qk_norm") not in (None, "rms_norm"):
            raise CheckpointError(f"qk_norm is {config['qk_norm']!r}; supported: null and 'rms_norm'")
        inside, outside = config["in_channels"], config.get("out_channels") or config["in_channels"]
        if inside not in (outside, 2 * outside + 1):
            raise CheckpointError(
                f"in_channels is {inside} and out_channels {outside}; supported: as many in as out, or beside them the "
                f"condition's latent and its mask, {2 * outside + 1} in"
            )
        dual = frozenset(config.get("dual_attention_layers") or ())
        if not dual <= set(range(config["num_layers"])):
            raise CheckpointError(f"dual_attention_layers names layers beyond the {config['num_layers']} there are")
        return cls(
            depth=config["num_layers"],
            num_heads=config["num_attention_heads"],
            head_dim=config["attention_head_dim"],
            text_width=config["joint_attention_dim"],
            pooled_width=config["pooled_projection_dim"],
            in_channels=inside,
            out_channels=outside,
            patch=config["patch_size"],
            positions=config["pos_embed_max_size"],
            dual=dual,
            qk_norm=config.get("qk_norm") is not None,
        )

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def condition_channels(self) -> int:
        return self.in_channels - self.out_channels

    @property
    def token_width(self) -> int:
        """Values of one latent token: a patch of latent pixels, ordered (row, column, channel)."""
        return self.patch * self.patch * self.out_channels

    @property
    def condition_width(self) -> int:
        """Values of one condition token, ordered alike; 0 where the model takes no condition."""
        return self.patch * self.patch * self.condition_channels

    def image_count(self, layer: int) -> int:
        """Multipliers of a layer's image stream."""
        return DUAL if layer in self.dual else PLAIN

    def text_count(self, layer: int) -> int:
        """Multipliers of a layer's text stream."""
        return LAST if layer == self.depth - 1 else PLAIN

    @property
    def modulation_count(self) -> int:
        """Multipliers of one modulation row: of each layer's image, then of its text; the final norm's two."""
        return sum(self.image_count(layer) + self.text_count(layer) for layer in range(self.depth)) + LAST
