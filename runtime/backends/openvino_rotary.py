"""Rotation of interleaved pairs for OpenVINO, which would turn them into halves and back with four transposes.

(x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin): x * cos, plus x with its neighbours exchanged * sin, whose signs
alternate.
"""

from typing import Any

import numpy as np


def extension() -> Any:
    """Return the conversion of RotaryEmbedding nodes, for ``openvino.Core.add_extension``."""
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("RotaryEmbedding", _convert)


def _convert(node: Any) -> list[Any]:
    """Return x (1, tokens, heads * width) rotated by cosine and sine (1, tokens, width / 2) of its pairs."""
    from openvino import opset13 as op

    x, cosine, sine = (node.get_input(index) for index in range(3))
    heads = node.get_attribute("num_heads", 0)
    assert heads, "the exporter names the heads"
    assert node.get_attribute("interleaved", 0), "the exporter rotates neighbours"
    width = x.get_partial_shape()[2].get_length() // heads

    def whole(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    def twice(table: Any, even: float) -> Any:
        """(1, tokens, width / 2) -> (tokens, 1, width), each value twice, the first times ``even``."""
        signs = op.constant(np.array([even, 1], np.float32))
        pairs = op.multiply(op.reshape(table, whole(-1, 1, width // 2, 1), False), signs)
        return op.reshape(pairs, whole(-1, 1, width), False)

    split = op.reshape(x, whole(-1, heads, width), False)
    neighbours = np.arange(width).reshape(-1, 2)[:, ::-1].ravel().astype(np.int64)
    exchanged = op.gather(split, op.constant(neighbours), op.constant(2))
    turned = op.add(op.multiply(split, twice(cosine, 1)), op.multiply(exchanged, twice(sine, -1)))
    return [op.reshape(turned, whole(1, -1, heads * width), False).output(0)]
