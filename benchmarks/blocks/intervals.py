"""From values per scene to figures with 95 % intervals: bootstrap over scenes; of proportions, Wilson's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, Sequence[float]]  # metric -> one value per scene
Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]  # of scene numbers, (rows, scenes) -> (rows,)

REPLICATES = 2000
LIMIT = 0.01  # relative loss on a continuous metric beyond which a precision is not the default
MEDIANS = {"rotation_degrees", "identity_degrees", "centre_error"}  # others are means over the scenes
RATIOS = {
    "error_over_constant": ("error", "error_of_constant"),
    "rotation_over_identity": ("rotation_degrees", "identity_degrees"),
}
LESS_IS_BETTER = {"error", "abs_rel", "reestimated_abs_rel", "rotation_degrees", "centre_error", *RATIOS}
NOT_SCORES = {
    "error_of_constant",
    "identity_degrees",
    "latents_psnr",
    "velocity_error",
}  # what other metrics are set against
# Judged against LIMIT. Thresholds (success, colours) jump, gains repeat their PSNR over a base that may be near 0.
CONTINUOUS = {
    "error", "abs_rel", "reestimated_abs_rel", "iou", "mask_iou", "f1", "psnr", "background_psnr", "rotation_degrees",
    "centre_error",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over scenes and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Loss:
    """How much worse than a reference a metric is, as a share of the reference's: below 0 is better.

    continuous: whether the metric is one that LIMIT is for.
    """

    reference: float
    value: float
    loss: Estimate
    continuous: bool

    @property
    def verdict(self) -> str:
        """ "beyond" if the whole interval lies beyond LIMIT, "within" if none of it does, "open" otherwise."""
        if not self.continuous:
            return ""
        return "beyond" if self.loss.low > LIMIT else "within" if self.loss.high <= LIMIT else "open"


def metrics_of(columns: Columns) -> list[str]:
    """Return the metrics that columns give: their own, and the ratios they are enough for."""
    return [*columns, *(name for name, parts in RATIOS.items() if set(parts) <= set(columns))]


def estimate(columns: Columns, metric: str) -> Estimate:
    """Return a metric over all scenes, with the interval of resampled scenes; of a proportion, Wilson's.

    Resampling a few scenes that all succeed would give an interval of no width.
    """
    if metric in columns and metric not in MEDIANS and {0.0, 1.0}.issuperset(columns[metric]):
        return _proportion(sum(columns[metric]), len(columns[metric]))
    return _with_interval(lambda index: _statistic(columns, metric, index), _length(columns))


def relative_loss(reference: Columns, other: Columns, metric: str) -> Loss:
    """Return how much ``other`` loses in a metric; entry i of both is of the same scene and the same noise.

    Raises: ValueError if they are not over the same number of scenes.
    """
    if _length(reference) != _length(other):
        raise ValueError(f"{_length(reference)} scenes against {_length(other)}: only the same scenes can be compared")
    sign = -1 if metric in LESS_IS_BETTER else 1

    def loss(index: NDArray[np.int64]) -> NDArray[np.float64]:
        base = _statistic(reference, metric, index)
        change = sign * (base - _statistic(other, metric, index)) + 0.0  # not -0
        return change / np.where(base == 0, np.where(change == 0, 1, 1e-12), np.abs(base))

    every = np.arange(_length(reference))[None]
    return Loss(
        float(_statistic(reference, metric, every)[0]),
        float(_statistic(other, metric, every)[0]),
        _with_interval(loss, _length(reference)),
        metric in CONTINUOUS,
    )


def _length(columns: Columns) -> int:
    (length,) = {len(values) for values in columns.values()}
    return length


def _statistic(columns: Columns, metric: str, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the metric over each row of scene numbers: (rows, scenes) -> (rows,)."""
    if metric in RATIOS:
        above, below = (_statistic(columns, part, index) for part in RATIOS[metric])
        return above / below
    values = np.asarray(columns[metric], np.float64)[index]
    return np.median(values, axis=1) if metric in MEDIANS else values.mean(axis=1)


def _proportion(hits: float, scenes: int) -> Estimate:
    """Return a share of scenes with the interval of E. B. Wilson (1927)."""
    normal = 1.959964  # standard deviations that hold 95 % of a normal distribution
    share, weight = hits / scenes, normal**2 / scenes
    middle = (share + weight / 2) / (1 + weight)
    reach = normal / (1 + weight) * (share * (1 - share) / scenes + weight / (4 * scenes)) ** 0.5
    return Estimate(share, max(0.0, middle - reach), min(1.0, middle + reach))


def _with_interval(statistic: Statistic, scenes: int) -> Estimate:
    drawn = np.random.default_rng(0).integers(0, scenes, (REPLICATES, scenes))
    low, high = np.quantile(statistic(drawn), [0.025, 0.975]).tolist()
    return Estimate(float(statistic(np.arange(scenes)[None])[0]), low, high)
