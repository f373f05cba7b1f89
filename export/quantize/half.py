"""16-bit graphs, with the factors folded into the weights that keep fp16 below its largest value, 65504.

The norms after w2 and wo cancel any common factor of their input, so w3, w2 and wo may be scaled by powers of two, if
the norms' eps is scaled by its square; nothing is lost. Which power follows from what calibration saw.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from framert.export.quantize.calibration import Activation
from framert.export.quantize.smoothing import Floats
from framert.export.weights import Weight

LIMIT = 2.0**11  # what results are brought below: 32 times less than fp16 holds, for values calibration did not see


def fold(
    weights: Mapping[str, Weight], activations: Mapping[str, Activation], divisors: Mapping[str, Floats], depth: int
) -> tuple[dict[str, Weight], dict[str, float]]:
    """Scale wo, w2 and w3 of a NextDiT whose results would be too large.

    Args:
        weights: stored tensors. activations: by the stored name of a product, measured on the checkpoint.
        divisors: what the channels at the inputs of the products were divided by since.
    Returns: the stored tensors, and the total factor of the results of each wo and w2 by its name.
    """
    folded, factors = dict(weights), {}
    for layer in (f"layers.{index}" for index in range(depth)):
        wo, w2, w3 = (
            f"{layer}.attention.wo.weight",
            f"{layer}.feed_forward.w2.weight",
            f"{layer}.feed_forward.w3.weight",
        )
        inner = _factor(_largest(activations[w2], divisors.get(w2)))
        factors[wo] = _factor(activations[wo].result)
        factors[w2] = min(inner, _factor(activations[w2].result))
        for name, factor in ((w3, inner), (w2, factors[w2] / inner), (wo, factors[wo])):
            if factor != 1:
                folded[name] = _scaled(folded[name], factor)
    return folded, factors


def scale_eps(graph: ir.Graph, factors: Mapping[str, float]) -> None:
    """Scale the eps of the norms behind the products by the square of their factors."""
    for node in graph:
        value = node.inputs[1] if node.op_type == "MatMul" else None
        factor = factors.get(str(value.name).removesuffix("_transpose"), 1.0) if value is not None else 1.0
        if factor == 1:
            continue
        (norm,) = node.outputs[0].consumers()
        assert norm.op_type == "RMSNormalization", norm
        eps = norm.attributes.get_float("epsilon", 1e-5)
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps * factor**2)


def _largest(activation: Activation, divisor: Floats | None) -> float:
    """Return the largest input, or of smoothed ones that of the sample, which is near."""
    return activation.largest if divisor is None else float(np.abs(activation.sample / divisor).max())


def _factor(largest: float) -> float:
    """Return the power of two, at most 1, that brings a value below LIMIT."""
    return 2.0 ** -max(0, math.ceil(math.log2(max(largest, 1e-30) / LIMIT)))


def _scaled(weight: Weight, factor: float) -> Weight:
    return Weight(weight.shape, lambda: weight.read() * np.float32(factor))
