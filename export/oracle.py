"""The checkpoint's models in plain torch, float32: what bundles are measured against and calibrated on.

``Oracle`` stands behind the runtime's backend interface, so that any task runs on it as on a bundle.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from framert.export.checkpoint import Checkpoint
from framert.export.plan import GraphPlan
from framert.runtime.manifest import ModelSpec, TensorSpec

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Watch = Callable[[Feeds, Array], None]


def load_model(plan: GraphPlan, checkpoint: Checkpoint) -> nn.Module:
    """Return the plan's module with the checkpoint's weights, in float32."""
    with torch.device("meta"):
        module = plan.build()
    state = {
        name: torch.from_numpy(checkpoint.tensor(plan.part, name).read())
        for name in module.get_submodule("model").state_dict()
    }
    module.get_submodule("model").load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def run_model(module: nn.Module, arrays: Sequence[Array]) -> list[Array]:
    """Return the outputs of a plan's module for its inputs in order."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    with torch.no_grad():
        call: Callable[..., Any] = getattr(module, "exact", module)  # see plan.Denoiser
        result = call(*tensors)
    outputs = (result,) if isinstance(result, torch.Tensor) else result
    return [output.numpy() for output in outputs]


class Oracle:
    """Runs the graphs of ``plans`` as torch modules. A part's weights are loaded once, when first used."""

    name = "oracle"

    def __init__(self, plans: Sequence[GraphPlan], checkpoint: Checkpoint, model: ModelSpec) -> None:
        self.model = model
        self.watch: Watch | None = None  # called after every step with the denoiser's inputs and its velocity
        self._plans = {plan.name: plan for plan in plans}
        self._checkpoint = checkpoint
        self._parts: dict[str, nn.Module] = {}
        self._modules: dict[str, nn.Module] = {}

    def part(self, name: str) -> nn.Module:
        """Return the model of a checkpoint's part, under whose modules the stored names are found."""
        if name not in self._parts:
            plan = next(plan for plan in self._plans.values() if plan.part == name)
            self._parts[name] = load_model(plan, self._checkpoint).get_submodule("model")
        return self._parts[name]

    def run(self, graph: str, feeds: Feeds) -> dict[str, Array]:
        """Run a graph on inputs in any order; returns its outputs by name."""
        plan = self._plans[graph]
        if graph not in self._modules:
            with torch.device("meta"):
                module = plan.build()
            module.model = self.part(plan.part)
            self._modules[graph] = module
        outputs = run_model(self._modules[graph], [feeds[name] for name in plan.inputs])
        return dict(zip(plan.outputs, outputs, strict=True))

    def denoiser(self) -> "OracleDenoiser":
        return OracleDenoiser(self, self._plans["denoiser"].inputs)


class Runs(Protocol):
    """Runs the graph "denoiser"; see ``Oracle``."""

    watch: Watch | None

    def run(self, graph: str, feeds: Feeds) -> Mapping[str, Array]: ...


class OracleDenoiser:
    """The arenas and the state of one pack, in numpy; see ``runtime.backends.base.Denoiser``.

    Args:
        oracle: makes every step.
        inputs: of the denoiser; what has an axis of "capacity" is filled by prompts, what has one of "rows" by
            modulation.
    """

    def __init__(self, oracle: Runs, inputs: Mapping[str, TensorSpec]) -> None:
        self._oracle = oracle
        self._tokens = {name: spec.shape.index("capacity") for name, spec in inputs.items() if "capacity" in spec.shape}
        self._arenas = {name: _empty(inputs[name]) for name in (*self._tokens, "modulation")}
        self._indices: dict[str, Array] = {}
        self._latents = self._history = self._velocity = _empty(inputs["latents"])

    def reserve(self, *, text: int, rows: int) -> None:
        for name, arena in self._arenas.items():
            axis, size = (self._tokens[name], text) if name in self._tokens else (0, rows)
            more = [(0, max(size - length, 0) if index == axis else 0) for index, length in enumerate(arena.shape)]
            self._arenas[name] = np.pad(arena, more)

    def write_text(self, begin: int, *parts: Array) -> None:
        for (name, axis), part in zip(self._tokens.items(), parts, strict=True):
            place = (slice(None),) * axis + (slice(begin, begin + part.shape[axis]),)
            self._arenas[name][place] = part

    def write_modulation(self, begin: int, modulation: Array) -> None:
        self._arenas["modulation"][begin : begin + len(modulation)] = modulation

    def padded(self, tokens: int) -> int:
        return tokens

    def bind(self, tables: Any, latents: Array, history: Array) -> None:
        self._indices = tables.arrays()
        self._latents, self._history = latents, history

    def step(self, row: Array, update: Array) -> None:
        state = {"latents": self._latents, "history": self._history, "row": row, "update": update}
        feeds = self._indices | self._arenas | state
        made = self._oracle.run("denoiser", feeds)
        self._latents, self._history, self._velocity = made["next_latents"], made["next_history"], made["velocity"]
        if self._oracle.watch is not None:
            self._oracle.watch(feeds, self._velocity)

    def state(self) -> tuple[Array, Array]:
        return self._latents, self._history

    def velocity(self) -> Array:
        return self._velocity


def _empty(spec: TensorSpec) -> Array:
    """Return an array of the input's sizes, free ones 0."""
    return np.zeros([side if isinstance(side, int) else 0 for side in spec.shape], np.float32)
