"""How frame attention is cut: columns of a head, query rows of a program, keys of one turn of its loop."""

from dataclasses import dataclass
from typing import Literal

from framert.runtime.errors import ConfigError

Precision = Literal["bf16", "fp16", "fp32"]

MIN_WIDTH = 16  # of a product on tensor cores
QUERY_TILES = (64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One way to cut.

    width, rest: powers of two, the columns of a head's one or two pieces (rest 0: one). queries: rows of a program.
    keys: of one turn of its loop. stages: how many turns ahead keys and values are fetched.
    """

    width: int
    rest: int
    queries: int
    keys: int
    warps: int
    stages: int


def pieces(head_dim: int, widest: int, least_split: int) -> tuple[int, int]:
    """Return (width, rest) that hold a head's columns, none wider than ``widest``.

    A power of two of at least ``least_split`` is split where the second piece is then smaller than the first: 72
    becomes 64 + 16, which costs 80 columns of products and of shared memory and not 128; 120 stays 128.
    """
    whole = max(MIN_WIDTH, 1 << (head_dim - 1).bit_length())
    half = whole // 2
    rest = max(MIN_WIDTH, 1 << max(head_dim - half - 1, 0).bit_length())
    if whole > widest or (whole >= least_split and half >= MIN_WIDTH and rest < half):
        return half, rest
    return whole, 0


def choose(head_dim: int, dtype: Precision, capability: int, query_tile: int | None = None) -> Tile:
    """Return the tile of a head size, precision and target: never of what is packed, so that no bit depends on it.

    All were chosen on compiled code, so that nothing spills (128 rows with 4 warps do at head_dim 120, on each of
    sm_87, 90, 100 and 120). On targets with warp groups, 128 x 64 with 8 warps and 64 x 64 with 4 are the fastest
    known on an H200, at 4096 and at 1024 tokens. Elsewhere Triton gives each warp its own rows only where no product
    is wider than it is high, so pieces are at most 64 wide beside 64 rows; otherwise every turn of the loop exchanges
    its weights between warps.

    Args:
        head_dim: up to 128. capability: 80, 87, ...
        query_tile: 64 or 128 rows; None is 128 where there are warp groups. Other targets and fp32 have one size.
    Raises: ConfigError for another ``query_tile``.
    """
    if query_tile is not None and query_tile not in QUERY_TILES:
        raise ConfigError(f"frame_attention: query_tile is {query_tile}; choose one of None, 64, 128")
    if dtype == "fp32":  # products run on the ordinary units, whole in registers
        width, rest = pieces(head_dim, 64, 32)
        return Tile(width=width, rest=rest, queries=32, keys=16, warps=8, stages=2)
    if 90 <= capability < 120:  # wgmma and tcgen05
        width, rest = pieces(head_dim, 128, 128)
        queries = query_tile or 128
        return Tile(width=width, rest=rest, queries=queries, keys=64, warps=queries // 16, stages=3)
    width, rest = pieces(head_dim, 64, 32)
    return Tile(width=width, rest=rest, queries=64, keys=64 if width + rest <= 64 else 32, warps=4, stages=3)
