"""SmoothQuant where it is exact: a factor per channel moves from activations into the weights that read them.

Source: SmoothQuant, arXiv:2211.10438. Dividing the weight that makes channel j of x by s[j] (a norm's weight, or row j
of a product) and multiplying column j of every product that reads x leaves the model what it was. Powers of
two would leave every bit as it was, but cost 8 % more error of the velocity at int8 than free factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from framert.export.quantize.calibration import Activation
from framert.export.weights import Weight

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Makes:
    """Rows of a stored tensor, from ``begin`` on, that make channels. plus_one: the model adds 1 to what they make."""

    name: str
    begin: int = 0
    plus_one: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """makes: the stored tensor whose first axis makes the channels, or rows of several that all do.

    reads: products, (out, in), that read them.
    """

    makes: str | tuple[Makes, ...]
    reads: tuple[str, ...]


def transformer_links(depth: int) -> list[Link]:
    """Return the links of NextDiT: norm1 into its products, w3 into w2.

    Not wv into wo: self-attention and text attention group the heads differently, which ties most channels together.
    """
    links: list[Link] = []
    for layer in (f"layers.{index}" for index in range(depth)):
        attention, ffn = f"{layer}.attention", f"{layer}.feed_forward"
        links += [
            Link(f"{layer}.attention_norm1.weight", tuple(f"{attention}.{name}.weight" for name in ("wq", "wk", "wv"))),
            Link(f"{ffn}.w3.weight", (f"{ffn}.w2.weight",)),
            Link(f"{layer}.ffn_norm1.weight", (f"{ffn}.w1.weight", f"{ffn}.w3.weight")),
        ]
    return links


def text_links(layers: int, prefix: str = "") -> list[Link]:
    """Return the links of a T5 encoder with gated feed-forwards, whose tensors' names begin with the prefix."""
    links: list[Link] = []
    for block in (f"{prefix}encoder.block.{index}" for index in range(layers)):
        attention, ffn = f"{block}.layer.0.SelfAttention", f"{block}.layer.1.DenseReluDense"
        links += [
            Link(f"{block}.layer.0.layer_norm.weight", tuple(f"{attention}.{name}.weight" for name in "qkv")),
            Link(f"{ffn}.wi_1.weight", (f"{ffn}.wo.weight",)),
            Link(f"{block}.layer.1.layer_norm.weight", (f"{ffn}.wi_0.weight", f"{ffn}.wi_1.weight")),
        ]
    return links


def factors(activation: Floats, weights: Sequence[Floats]) -> Floats:
    """Return s, (in,), around 1: activations become x / s, columns of the weights w * s.

    Both then have the same spread of channels: x / s and w * s grow and shrink together. Root mean squares gave a
    smaller error of the product than the largest magnitudes of the paper.

    Args:
        activation: (in,) root mean square of each channel. weights: (out, in) each, one below the other.
    """
    squares = sum(np.square(weight, dtype=np.float64).sum(0) for weight in weights)
    column = np.sqrt(squares / sum(len(weight) for weight in weights))
    used = (activation > 0) & (column > 0)  # a channel without either may keep what it has
    s = np.ones(len(activation))
    if used.any():
        s[used] = np.sqrt(activation[used] / column[used])
        s[used] /= np.median(s[used])
    return s.astype(np.float32)


def smooth(
    weights: Mapping[str, Weight], links: Sequence[Link], activations: Mapping[str, Activation]
) -> tuple[dict[str, Weight], dict[str, Floats]]:
    """Move the factors of all links.

    Args:
        weights: stored tensors by name. activations: by the name of the product that reads them.
    Returns: the stored tensors with the factors in them, each still made when it is read; and what the channels at the
        inputs of the products are now divided by.
    """
    smoothed, divisors = dict(weights), {}
    for link in links:
        s = factors(activations[link.reads[0]].channel, [smoothed[name].read() for name in link.reads])
        for name in link.reads:
            smoothed[name] = _times(smoothed[name], s)
            divisors[name] = s
        inverse = np.float32(1) / s
        for part in (Makes(link.makes),) if isinstance(link.makes, str) else link.makes:
            smoothed[part.name] = _divided(smoothed[part.name], part, inverse)
    return smoothed, divisors


def _divided(weight: Weight, part: Makes, inverse: Floats) -> Weight:
    """Multiply the part's rows. A bias takes care of the 1 that is added later: (1 + b) / s is 1 + (b + 1) / s - 1."""
    if not part.begin and not part.plus_one and len(inverse) == weight.shape[0]:
        return _times(weight, _rows(inverse, weight))
    rows, is_bias = slice(part.begin, part.begin + len(inverse)), len(weight.shape) == 1

    def read() -> Floats:
        values: Floats = np.array(weight.read(), np.float32)
        values[rows] *= _rows(inverse, weight)
        if part.plus_one and is_bias:
            values[rows] += inverse - np.float32(1)
        return values

    return Weight(weight.shape, read)


def _rows(values: Floats, weight: Weight) -> Floats:
    return values.reshape(-1, *[1] * (len(weight.shape) - 1))


def _times(weight: Weight, factor: Floats) -> Weight:
    return Weight(weight.shape, lambda: weight.read() * factor)
