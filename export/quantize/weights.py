"""Weights of products in 8 bits, one scale per output channel; the rounding is onnxruntime's."""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import quant_utils

from framert.export.weights import Array, Weight

LARGEST = {onnx.TensorProto.INT8: 127.0, onnx.TensorProto.FLOAT8E4M3FN: 448.0}
SMALLEST = 1e-30  # a channel of zeros gets this scale rather than 0


def per_channel(weight: Weight, kind: int) -> tuple[Weight, Weight]:
    """Return the values, (in, out) of type ``kind``, and the scales, (out,): weight = values * scales, nearly."""
    read_values, read_scales = made_together(lambda: quantize(weight.read(), kind))
    inputs, outputs = weight.shape
    return Weight((inputs, outputs), read_values, kind), Weight((outputs,), read_scales)


def made_together(make: Callable[[], tuple[Array, Array]]) -> tuple[Callable[[], Array], Callable[[], Array]]:
    """Return a reader of each of the two that ``make`` returns.

    They are written one after the other: what one reader makes is kept until the other takes its part, and no longer,
    so that a graph's quantized weights are never in memory all at once.
    """
    kept: dict[int, Array] = {}

    def read(part: int) -> Array:
        if part not in kept:
            kept.update(enumerate(make()))
        return kept.pop(part)

    return lambda: read(0), lambda: read(1)


def quantize(values: NDArray[np.float32], kind: int) -> tuple[Array, NDArray[np.float32]]:
    """Return values (in, out) rounded to ``kind``, as they are stored, and the scale of each column."""
    scales = np.maximum(np.abs(values).max(0) / LARGEST[kind], SMALLEST).astype(np.float32)
    zero = np.zeros(1, np.int8)
    if kind == onnx.TensorProto.INT8:
        rounded = quant_utils.quantize_nparray(kind, values, scales, zero, low=-127)
    else:
        rounded = quant_utils.quantize_nparray(kind, values / scales, np.ones((), np.float32), 0).view(np.uint8)
    return rounded, scales
