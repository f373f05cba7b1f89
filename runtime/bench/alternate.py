"""Time several sides in turn, so that what disturbs the machine disturbs all of them, and compare them pair by pair."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence

from framert.runtime.errors import ConfigError


def alternate(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    pause: float = 0.05,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of every call of every side: entry i of each belongs to round i.

    Args:
        sides: name -> one call of the thing to time; it must return only when the work is done.
        rounds: timed calls of each side; every other round runs them in reverse order.
        warmup: untimed rounds first.
        pause: seconds of rest before each call. Thread pools spin for a while after their work, and would otherwise
            take the cores from whoever comes next.
        on_round: called after each timed round with the rounds done.
    Raises: ConfigError if there is nothing to time.
    """
    if not sides or rounds < 1 or warmup < 0:
        raise ConfigError(f"give at least one side, one round and no negative warmup; got {rounds=}, {warmup=}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(-warmup, rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                time.sleep(pause)
                begin = time.perf_counter()
                sides[name]()
                elapsed = time.perf_counter() - begin
                if turn >= 0:
                    seconds[name].append(elapsed)
            if turn >= 0 and on_round:
                on_round(turn + 1)
    finally:
        if collecting:
            gc.enable()
    return seconds


def rate_ratios(seconds: Mapping[str, Sequence[float]], fast: str, slow: str) -> list[float]:
    """Return, round by round, the rate of ``fast`` divided by the rate of ``slow``: how many times faster it is."""
    return [theirs / ours for ours, theirs in zip(seconds[fast], seconds[slow], strict=True)]
