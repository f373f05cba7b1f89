"""What the step of a family is to the denoiser: the arenas that it reads, and the velocity that it gives."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

SHORT = 2048  # tokens up to which tiles are small: on an H200 a prototype liked 64 rows at 1024, 128 at 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Arenas:
    """What requests keep on the device between steps.

    text: what the conditioner made of prompts, in the order of ``base.text_arenas``. modulation: (rows, multipliers,
    hidden). cache: keys and values of requests that reuse those of their condition frames, with as many tokens as
    reuse; () for a family that keeps none.
    """

    text: tuple[Tensor, ...]
    modulation: Tensor
    cache: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTables:
    """The tables of a pack on the device, padded to the sizes of a step, see runtime.tables.

    kv_index is None where keys are read where they fall. conditions and condition_source are None where tokens are
    shown nothing beside their latent, text_source and text_frame where text is no part of the call.
    """

    source: Tensor
    position: Tensor
    frame: Tensor
    row: Tensor
    q_range: Tensor
    kv_range: Tensor
    text_range: Tensor
    kv_index: Tensor | None = None
    conditions: Tensor | None = None
    condition_source: Tensor | None = None
    text_source: Tensor | None = None
    text_frame: Tensor | None = None


class Model(Protocol):
    """The step of one family with the weights of one bundle, shared by all denoisers of a backend."""

    @property
    def text_axis(self) -> int:
        """The axis of the text arenas, and of the cache's, along which tokens lie."""

    def empty(self) -> Arenas:
        """Return arenas without any rows."""

    def velocity(self, arenas: Arenas, tables: TokenTables, latents: Tensor) -> Tensor:
        """Return the velocity of every model token, (tokens, token_width) fp32, of latents (slots, token_width) fp32.

        It reads the device from the device alone, so that it can be captured; padding changes no token's result.
        """


def query_tile(tokens: int) -> int | None:
    """Return the tile of attention for a bucket of so many tokens, see ``frame_attention``."""
    return 64 if tokens <= SHORT else None
