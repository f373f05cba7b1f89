"""Euler's method, order 1, one call per interval."""

from collections.abc import Sequence
from itertools import pairwise

from framert.runtime.solvers.evaluation import Evaluation, Row

ORDER = 1


def evaluations(sigmas: Sequence[float]) -> list[Evaluation]:
    """Return one evaluation per interval of ``sigmas``: x' = x + (sigma' - sigma) v."""
    pairs = pairwise(sigmas)
    return [Evaluation(now, step(now, after), index, after) for index, (now, after) in enumerate(pairs)]


def step(sigma: float, after: float) -> Row:
    return (1.0, after - sigma, 0.0, 0.0, 0.0, 0.0)
