"""One call of the model, as a row of the denoiser's ``update`` table."""

from dataclasses import dataclass

Row = tuple[float, float, float, float, float, float]

KEEP: Row = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # a condition frame: x' = x, h' = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The model is called on the sample at noise level ``sigma``; then x' = a x + b v + c h, h' = d x + e v + f h.

    row: (a, b, c, d, e, f). interval: the schedule interval this call completes, None while it is under way.
    after: the sample's noise level once the row was applied.
    """

    sigma: float
    row: Row
    interval: int | None
    after: float
