"""What the activations look like: ranges and samples of the products' inputs, recorded while real tasks run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float32]
KEPT = 4  # tokens of each call that are kept as examples


@dataclass(frozen=True, slots=True)
class Activation:
    """Inputs of one product. channel: (in,) root mean square of each channel. sample: (n, in), some of the tokens.

    largest, result: largest magnitude of any value of the inputs, and of the product's results.
    """

    channel: Floats
    sample: Floats
    largest: float
    result: float

    def amax(self, divided_by: Floats | None = None) -> float:
        """Return a usual token's largest magnitude, after its channels are divided: a root mean square over tokens."""
        values = self.sample if divided_by is None else self.sample / divided_by
        return float(np.sqrt(np.mean(np.square(np.abs(values).max(1)))))


@dataclass(slots=True)
class _Seen:
    squares: torch.Tensor
    tokens: int = 0
    largest: float = 0.0
    result: float = 0.0
    sample: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def observe(models: Mapping[str, nn.Module]) -> Iterator[dict[str, Activation]]:
    """Record the inputs of every nn.Linear of the models while the block runs; the result is filled when it ends.

    Args:
        models: by a prefix that is put before the names of their modules ("" for none).
    Yields: activations by the stored name of the product's weight.
    """
    seen: dict[str, _Seen] = {}
    found: dict[str, Activation] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            tokens = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            entry = seen.setdefault(name, _Seen(torch.zeros(tokens.shape[1], dtype=torch.float64)))
            entry.squares += tokens.double().square().sum(0)
            entry.tokens += len(tokens)
            entry.largest = max(entry.largest, float(tokens.abs().max()))
            entry.result = max(entry.result, float(output.detach().abs().max()))
            entry.sample.append(tokens[:: -(-len(tokens) // KEPT)].clone())

        return hook

    handles = [
        module.register_forward_hook(watch(f"{prefix}{name}.weight"))
        for prefix, model in models.items()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for name, entry in seen.items():
            channel = (entry.squares / max(entry.tokens, 1)).sqrt().float().numpy()
            sample = torch.cat(entry.sample).float().numpy()
            found[name] = Activation(channel, sample, entry.largest, entry.result)
