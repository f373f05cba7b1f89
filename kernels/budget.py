"""Error budgets: how far a kernel may be from fp64, given how far plain torch in the same dtype is."""

import torch
from torch import Tensor


def budget(low: Tensor, exact: Tensor) -> float:
    """Return the largest allowed error: twice the plain reference's, plus one rounding of the largest value.

    Args:
        low: the plain reference's result in the kernel's dtype.
        exact: the reference in float64 on the same inputs (drawn once, in the low dtype).
    """
    if not exact.numel():
        return 0.0
    step = torch.finfo(low.dtype).eps * exact.abs().max().item()
    return 2 * (low.double() - exact).abs().max().item() + step


def assert_within_budget(actual: Tensor, low: Tensor, exact: Tensor) -> None:
    """Raise AssertionError if ``actual`` has another shape or dtype than ``low``, is not finite, or is too far off."""
    assert actual.shape == exact.shape == low.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == low.dtype, f"dtype {actual.dtype}, expected {low.dtype}"
    assert actual.isfinite().all(), "the result is not finite"
    if not exact.numel():
        return
    error, allowed = (actual.double() - exact).abs().max().item(), budget(low, exact)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
