"""Heun's method, order 2, two calls per interval and plain Euler into sigma 0: 2 * steps - 1 calls."""

from collections.abc import Sequence
from itertools import pairwise

from framert.runtime.solvers import euler
from framert.runtime.solvers.evaluation import Evaluation

ORDER = 2


def evaluations(sigmas: Sequence[float]) -> list[Evaluation]:
    """Return the evaluations: an Euler step that keeps v in the history, then its correction at the new level."""
    calls: list[Evaluation] = []
    for index, (now, after) in enumerate(pairwise(sigmas)):
        if after == 0.0:
            calls.append(Evaluation(now, euler.step(now, after), index, after))
            continue
        half = (after - now) / 2
        calls.append(Evaluation(now, (1.0, after - now, 0.0, 0.0, 1.0, 0.0), None, after))
        calls.append(Evaluation(after, (1.0, half, -half, 0.0, 0.0, 0.0), index, after))
    return calls
