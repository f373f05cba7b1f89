"""How near a result is to another bundle's for the same request: what stands beside every speed."""

import math

import numpy as np

from framert.runtime.arrays import Floats
from framert.runtime.result import Result

IDENTICAL = 100.0  # dB that stand for no difference at all: a row holds finite numbers; 8-bit pictures end at 59
NEARLY = 99.0  # dB of any difference at most, so that "identical" is never said of what is only near
DEFAULT_GATE = 30.0  # dB


def decibels(actual: Floats, expected: Floats, peak: float = 1.0) -> float:
    """Return the PSNR of arrays of one shape whose values span ``peak``.

    IDENTICAL is for equal arrays alone; others get at most NEARLY, and at least -IDENTICAL, also if not finite.
    """
    if np.array_equal(actual, expected):
        return IDENTICAL
    error = float(np.mean((np.asarray(actual, np.float64) - expected) ** 2))
    ratio = peak**2 / error if error > 0 else math.inf
    return min(NEARLY, max(-IDENTICAL, 10 * math.log10(ratio))) if ratio > 0 and not math.isnan(error) else -IDENTICAL


def psnr(result: Result, expected: Result) -> float:
    """Return the PSNR in dB of a result's pictures, or of its latents for a task that makes no picture."""
    if expected.pixels.size:
        return decibels(result.pixels, expected.pixels)
    return decibels(result.latents, expected.latents, float(np.ptp(expected.latents)))
