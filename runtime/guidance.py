"""Guidance rules as weights over branches: the guided velocity is a weighted sum over several prompts."""

from dataclasses import dataclass
from numbers import Real

from framert.runtime.errors import ConfigError

MAX_SCALE = 1000  # far beyond any use; what is larger overflows


@dataclass(frozen=True, slots=True)
class Branch:
    """One evaluation of a sequence: under which prompt, and its share of the guided velocity."""

    prompt: str
    weight: float


def classifier_free(prompt: str, negative_prompt: str, scale: float) -> tuple[Branch, ...]:
    """Return the branches of v = v_negative + scale (v_prompt - v_negative); one branch when scale is at most 1.

    Raises: ConfigError if ``scale`` is not a number from 0 to 1000.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale <= MAX_SCALE:  # NaN compares false
        raise ConfigError(f"guidance is {scale!r}; give a number from 0 to {MAX_SCALE} (1 or less means no guidance)")
    if scale <= 1:
        return (Branch(prompt, 1.0),)
    return (Branch(prompt, float(scale)), Branch(negative_prompt, 1.0 - float(scale)))
