"""torch module -> ONNX graph without weights: traced under fake tensors, so its size in memory does not matter."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from framert.export.plan import GraphPlan
from framert.runtime.manifest import TensorSpec

OPSET = 23  # the first with RMSNormalization
# Example sizes of the free axes, all different so that no two are taken for one.
SIZES = (5, 7, 11, 13, 17, 19, 23, 29)
PREFIX = "model."


def trace(plan: GraphPlan) -> ir.Model:
    """Return the graph with the plan's input and output names; its parameters are inputs, named as stored."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    names = sorted({side for spec in plan.inputs.values() for side in spec.shape if isinstance(side, str)})
    multiples = {name: plan.multiples.get(name, 1) for name in names}
    sizes = {name: multiples[name] * size for name, size in zip(names, SIZES, strict=False)}
    axes = {name: multiples[name] * Dim(name) if multiples[name] > 1 else Dim(name) for name in names}
    with mode:
        module = plan.build().eval()
        examples = tuple(_example(spec, sizes) for spec in plan.inputs.values())
    dynamic: Any = tuple(
        {axis: axes[side] for axis, side in enumerate(spec.shape) if isinstance(side, str)}
        for spec in plan.inputs.values()
    )
    if any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(module.forward).parameters.values()):
        dynamic = (dynamic,)
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, examples, dynamic_shapes=dynamic, strict=False)
        exported = torch.onnx.export(program, opset_version=OPSET, optimize=False, verbose=False)
    assert exported is not None
    model = exported.model
    _free_parameters(model.graph, set(module.state_dict()))
    name_ends(model.graph, plan)
    return model


def name_ends(graph: ir.Graph, plan: GraphPlan) -> None:
    """Give the graph's inputs and outputs the names and the shapes of the plan."""
    for values, specs in ((graph.inputs, plan.inputs), (graph.outputs, plan.outputs)):
        for value, (name, spec) in zip(values, specs.items(), strict=False):
            value.name = name
            value.shape = ir.Shape(spec.shape)


def stored_shapes(plan: GraphPlan) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the checkpoint part of this graph must hold."""
    with FakeTensorMode():
        module = plan.build().get_submodule(PREFIX.rstrip("."))
        return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def parameters(graph: ir.Graph, plan: GraphPlan) -> list[ir.Value]:
    """Return the inputs that stand for parameters: those after the plan's own."""
    return list(graph.inputs)[len(plan.inputs) :]


def _example(spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    shape = [side if isinstance(side, int) else sizes[side] for side in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _free_parameters(graph: ir.Graph, stored: Set[str]) -> None:
    """Turn parameters from initializers without usable values into inputs, which no optimisation touches."""
    for name, value in list(graph.initializers.items()):
        if name in stored:
            del graph.initializers[name]
            value.const_value = None
            value.name = name.removeprefix(PREFIX)
            graph.inputs.append(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes, about its own deprecations and packages not installed, off the user's terminal.

    torch.__trace builds long records for whoever listens to the root logger: a third of the time under a test runner.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
