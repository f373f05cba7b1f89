"""Guidance rules as weights over branches: the guided velocity is a weighted sum over several prompts."""

import math
from dataclasses import dataclass

from framert.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Branch:
    """One evaluation of a sequence: under which prompt, and its share of the guided velocity."""

    prompt: str
    weight: float


def classifier_free(prompt: str, negative_prompt: str, scale: float) -> tuple[Branch, ...]:
    """Return the branches of v = v_negative + scale (v_prompt - v_negative); one branch when scale is at most 1.

    Raises: ConfigError if ``scale`` is negative or not a finite number.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale < 0:
        raise ConfigError(f"guidance is {scale!r}; give a number of at least 0 (1 or less means no guidance)")
    if scale <= 1:
        return (Branch(prompt, 1.0),)
    return (Branch(prompt, float(scale)), Branch(negative_prompt, 1.0 - scale))
