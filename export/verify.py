"""Compare every graph of a bundle, in ONNX Runtime, with the torch model it was traced from."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

import framert
from framert.export import cases
from framert.export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from framert.export.models.nextdit import NextDiTConfig
from framert.export.plan import Denoiser, GraphPlan, plan_graphs
from framert.export.trace import stored_shapes
from framert.runtime.bundle import Bundle, write_manifest
from framert.runtime.errors import BackendError, CheckpointError

Array = NDArray[Any]
# Largest relative L2 error of any output: the fidelity asked of fp32 velocities against golden vectors.
BUDGETS = {"float32": 1e-5}


def verify(
    bundle: str | os.PathLike[str], checkpoint: str | os.PathLike[str], *, progress: bool = True
) -> dict[str, Any]:
    """Measure the error of every graph and write it into the bundle's manifest.

    Args:
        bundle: a bundle's folder.
        checkpoint: the checkpoint it was exported from, a folder or a hub name.
        progress: show a bar on stderr.
    Returns: "passed"; "graphs", by name: precision, cases, budget, and the largest relative L2 error of each output;
        versions and date. ``table`` renders it.
    Raises: BundleError or CheckpointError if either cannot be read, or they do not belong together.
    """
    opened = Bundle.open(bundle)
    source = open_checkpoint(checkpoint)
    plans = _matching_plans(opened, source)
    graphs: dict[str, Any] = {}
    for plan in (bar := tqdm(plans, unit="graph", disable=not progress)):
        bar.set_description(plan.name)
        graphs[plan.name] = _compare(plan, opened, source)
    report = {
        "passed": all(graph["passed"] for graph in graphs.values()),
        "graphs": graphs,
        "framert": framert.__version__,
        "torch": version("torch"),
        "onnxruntime": _session_module().__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_manifest(opened.path, replace(opened.manifest, verified=report))
    return report


def table(report: Mapping[str, Any]) -> str:
    """Return the report as lines of text: graph, output, error, budget."""
    rows = [
        f"{name:13} {output:14} {error:9.2e} of {graph['budget']:.0e}  {'ok' if error <= graph['budget'] else 'BEYOND'}"
        for name, graph in report["graphs"].items()
        for output, error in graph["errors"].items()
    ]
    return "\n".join([*rows, "passed" if report["passed"] else "beyond the budget"])


def oracle(plan: GraphPlan, checkpoint: Checkpoint) -> nn.Module:
    """Return the plan's module with the checkpoint's weights, in float32, running plain torch."""
    with torch.device("meta"):
        module = plan.build()
    state = {
        name: torch.from_numpy(checkpoint.tensor(plan.part, name).read())
        for name in module.get_submodule("model").state_dict()
    }
    module.get_submodule("model").load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _matching_plans(bundle: Bundle, checkpoint: Checkpoint) -> tuple[GraphPlan, ...]:
    transformer = NextDiTConfig.from_checkpoint(checkpoint.configs["transformer"])
    plans = plan_graphs(transformer, checkpoint.configs["vae"], checkpoint.configs["text_encoder"])
    check_tensors(checkpoint, {plan.part: stored_shapes(plan) for plan in plans})
    for plan in plans:
        graph = bundle.manifest.graphs[plan.name]
        if dict(graph.inputs) != dict(plan.inputs) or dict(graph.outputs) != dict(plan.outputs):
            raise CheckpointError(
                f"{checkpoint.folder} is not what {bundle.path} was made of: its {plan.name} has other tensors; "
                "give the checkpoint that the bundle's provenance names"
            )
    return plans


def _compare(plan: GraphPlan, bundle: Bundle, checkpoint: Checkpoint) -> dict[str, Any]:
    inputs = _cases(plan.name, bundle, checkpoint)
    session = _session(bundle, plan.name)
    names = list(plan.outputs)
    actual = [session.run(names, case) for case in inputs]
    del session  # before the oracle's weights come: a full-size graph and its oracle do not fit together
    module = oracle(plan, checkpoint)
    errors = dict.fromkeys(names, 0.0)
    for case, found in zip(inputs, actual, strict=True):
        for name, value, exact in zip(names, found, _run(module, case), strict=True):
            errors[name] = max(errors[name], relative_error(value, exact))
    precision = bundle.manifest.graphs[plan.name].precision
    budget = BUDGETS[precision]
    return {
        "precision": precision,
        "cases": len(inputs),
        "budget": budget,
        "errors": errors,
        "passed": max(errors.values()) <= budget,
    }


def relative_error(value: Array, exact: Array) -> float:
    """Return ``|value - exact| / |exact|`` in L2; infinite where ``value`` is not finite."""
    if not np.isfinite(value).all():
        return float("inf")
    norm = float(np.linalg.norm(exact.astype(np.float64)))
    return float(np.linalg.norm(value.astype(np.float64) - exact)) / max(norm, 1e-30)


def _cases(name: str, bundle: Bundle, checkpoint: Checkpoint) -> list[cases.Case]:
    model = bundle.manifest.model
    if name == "text_encoder":
        return cases.text_encoder_cases(int(checkpoint.configs["text_encoder"]["vocab_size"]))
    if name == "denoiser":
        conditioner = _session(bundle, "conditioner")

        def condition(hidden_states: Array, noise_level: Array) -> Sequence[Array]:
            feeds = {"hidden_states": hidden_states, "noise_level": noise_level}
            outputs: Sequence[Array] = conditioner.run(["text_k", "text_v", "modulation"], feeds)
            return outputs

        return cases.denoiser_cases(bundle.manifest, condition)
    makers = {
        "vae_encoder": cases.vae_encoder_cases,
        "conditioner": cases.conditioner_cases,
        "vae_decoder": cases.vae_decoder_cases,
    }
    return makers[name](model)


def _run(module: nn.Module, case: cases.Case) -> list[Array]:
    tensors = [torch.from_numpy(array) for array in case.values()]
    with torch.no_grad():
        # The attention that Denoiser traces is a stand-in without a result; that of the model itself is the reference.
        call: Callable[..., Any] = module.model.denoise if isinstance(module, Denoiser) else module
        result = call(*tensors)
    outputs = (result,) if isinstance(result, torch.Tensor) else result
    return [output.numpy() for output in outputs]


def _session(bundle: Bundle, name: str) -> Any:
    runtime = _session_module()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(bundle.graph_path(name), options, providers=["CPUExecutionProvider"])


def _session_module() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError("framert verify runs the graphs in onnxruntime; pip install 'framert[cpu]'") from error
    return onnxruntime
