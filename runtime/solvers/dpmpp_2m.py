"""DPM-Solver++(2M) for flow matching, order 2, one call per interval; the history is the last clean estimate.

Source: Lu et al., arXiv:2211.01095, with alpha = 1 - sigma and lambda = ln(alpha / sigma).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from framert.runtime.solvers.evaluation import Evaluation

ORDER = 2


def evaluations(sigmas: Sequence[float]) -> list[Evaluation]:
    """Return one evaluation per interval; first order on the first step, after sigma 1 and into sigma 0."""
    calls: list[Evaluation] = []
    for index, (now, after) in enumerate(pairwise(sigmas)):
        previous = sigmas[index - 1] if index else 1.0
        gain = 0.0
        if previous != 1.0 and after != 0.0:
            gain = (_log_snr(after) - _log_snr(now)) / (2 * (_log_snr(now) - _log_snr(previous)))
        shrink = 1 - after / now
        row = (1 + shrink * gain, (after - now) * (1 + gain), -shrink * gain, 1.0, -now, 0.0)
        calls.append(Evaluation(now, row, index, after))
    return calls


def _log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)
