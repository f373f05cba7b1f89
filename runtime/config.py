"""Limits of an engine."""

from dataclasses import dataclass

from framert.runtime.errors import ConfigError

DEFAULT_PACK_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """max_tokens: packed model tokens per denoiser call, guidance branches counted.

    None packs up to 8192 and lets a larger request run alone; a number is a promise, and larger requests are refused.
    """

    max_tokens: int | None = None

    def __post_init__(self) -> None:
        value = self.max_tokens
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"max_tokens is {value!r}; give a whole number of at least 1, or None")
