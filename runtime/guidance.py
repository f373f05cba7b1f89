"""Guidance rules as weights over branches: the guided velocity is a weighted sum over several evaluations."""

from dataclasses import dataclass
from numbers import Real

from PIL.Image import Image

from framert.runtime.errors import ConfigError

MAX_SCALE = 1000  # far beyond any use; what is larger overflows


@dataclass(frozen=True, slots=True)
class Branch:
    """One evaluation of a sequence: under which prompt, and its share of the guided velocity.

    picture: whether it is shown what the sequence has beside its latents (tables.Layout.blank). references: pictures
    whose features stand for the prompt's placeholders.
    """

    prompt: str
    weight: float
    picture: bool = False
    references: tuple[Image, ...] = ()


def check_scale(name: str, scale: object) -> float:
    """Return a scale of guidance. Raises: ConfigError that names it if it is not a number from 0 to 1000."""
    number = float(scale) if isinstance(scale, Real) and not isinstance(scale, bool) else -1.0
    if not 0 <= number <= MAX_SCALE:  # NaN compares false
        raise ConfigError(f"{name} is {scale!r}; give a number from 0 to {MAX_SCALE} (1 or less means no guidance)")
    return number


def classifier_free(prompt: str, negative_prompt: str, scale: float) -> tuple[Branch, ...]:
    """Return the branches of v = v_negative + scale (v_prompt - v_negative); one branch when scale is at most 1."""
    if scale <= 1:
        return (Branch(prompt, 1.0),)
    return (Branch(prompt, scale), Branch(negative_prompt, 1.0 - scale))


def dual(prompt: str, negative_prompt: str, text: float, image: float) -> tuple[Branch, ...]:
    """Return the branches of v = v(0,n) + image (v(V,n) - v(0,n)) + text (v(V,p) - v(V,n)).

    V is the picture, p the prompt and n the negative one. Scales of at most 1 count as 1; branches without weight are
    left out, so that an image scale of 1 is classifier-free guidance under the picture.
    """
    text, image = max(text, 1.0), max(image, 1.0)
    branches = (
        Branch(prompt, text, picture=True),
        Branch(negative_prompt, image - text, picture=True),
        Branch(negative_prompt, 1.0 - image),
    )
    return tuple(branch for branch in branches if branch.weight)
