"""From a precision to a graph: which products are rewritten, how, and what is done to the weights before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
import onnx_ir as ir

from framert.export.keep_high import KeepHigh
from framert.export.quantize import block_int4, half, per_token, smoothing
from framert.export.quantize.calibration import Activation
from framert.export.quantize.smoothing import Floats, Link
from framert.export.quantize.stored_half import store_half
from framert.export.tensorrt.half import cast
from framert.export.weights import Weight

KINDS = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
SMOOTHED = ("int8", "int4", "fp8", "fp16")  # bf16 has the range of fp32
HALVES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
# Their products are quantized. Those of the repeated blocks are nearly all of the weights: what enters and leaves the
# model stays in fp32.
GRAPHS = ("denoiser", "text_encoder")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was learned of one checkpoint part, and its weights made ready.

    weights: stored tensors by name, smoothed if activations are given. activations: by the stored name of a product;
    empty if nothing was calibrated. divisors: what the channels of these inputs are divided by since. factors: of the
    results of products by their stored name, where fp16 would overflow. kept: products that stay in fp32.
    """

    weights: Mapping[str, Weight]
    activations: Mapping[str, Activation] = field(default_factory=dict)
    divisors: Mapping[str, Floats] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    kept: KeepHigh = field(default_factory=KeepHigh)

    @classmethod
    def smoothed(
        cls, weights: Mapping[str, Weight], links: Sequence[Link], activations: Mapping[str, Activation]
    ) -> "Recipe":
        ready, divisors = smoothing.smooth(weights, links, activations)
        return cls(ready, activations, divisors)

    def folded(self, depth: int) -> "Recipe":
        """Return the recipe of a NextDiT with its weights scaled for fp16."""
        weights, factors = half.fold(self.weights, self.activations, self.divisors, depth)
        return replace(self, weights=weights, factors=factors)

    def apply(
        self, model: ir.Model, name: str, word: str, weights: Mapping[str, Weight], *, signed: bool
    ) -> dict[str, Weight]:
        """Rewrite a graph's products for a precision.

        Args:
            name: of the graph. word: its precision. weights: of the graph, by the name of their value.
            signed: quantize activations to signed numbers, which TensorRT asks for.
        Returns: the weights of the rewritten graph.
        """
        if word == "fp32":
            return dict(weights)
        if name not in GRAPHS:
            assert word == "fp16", (name, word)
            return store_half(model.graph, weights)
        graph = model.graph
        if word in HALVES:
            half.scale_eps(graph, self.factors)
            return cast(model, weights, word)
        chosen = self.kept.chosen([value for value, weight in weights.items() if len(weight.shape) == 2]).__contains__
        if word == "int4":
            return block_int4.quantize_products(graph, weights, chosen, plain=signed)
        typical = {
            value: self.activations[stored].amax(self.divisors.get(stored))
            for value in weights
            if (stored := value.removesuffix("_transpose")) in self.activations
        }
        return per_token.quantize_products(graph, weights, KINDS[word], chosen, typical, signed=signed)
