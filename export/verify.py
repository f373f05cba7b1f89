"""Compare every graph of a bundle with the torch model it was traced from: in ONNX Runtime, or as it is written."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import framert
from framert.export import cases, fidelity
from framert.export import precision as precisions
from framert.export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from framert.export.families.find import find_family
from framert.export.fidelity import relative_error
from framert.export.oracle import Oracle, load_model, run_model
from framert.export.plan import GraphPlan
from framert.export.quantize.recipe import SMOOTHED
from framert.export.trace import stored_shapes
from framert.export.written import runner
from framert.runtime.bundle import Bundle, write_manifest
from framert.runtime.errors import CheckpointError
from framert.runtime.manifest import Graph

Array = NDArray[Any]
# Largest relative L2 error of any output. fp32: the fidelity asked of its velocities against golden vectors. The others
# tell rounding, which guidance enlarges about five times, from a mistake: several times what the Blocks model has.
BUDGETS = {
    "float32": 1e-5,
    "float16": 0.01,
    "bfloat16": 0.1,
    "int8": 0.2,
    "float8e4m3fn": 0.5,
    "int4": 0.5,
}
# On real tasks, where the budget of fp32 is of guided velocities too: text alone in int8 leaves the denoiser in fp32.
TASK_BUDGETS = BUDGETS | {"float32": 5e-5}
RECORDED = ("backends", "evaluation")  # what others than ``verify`` write beside its results


def verify(
    bundle: str | os.PathLike[str], checkpoint: str | os.PathLike[str], *, progress: bool = True
) -> dict[str, Any]:
    """Measure the error of every graph and write it into the bundle's manifest.

    What ``framert doctor --record`` and evaluate.py --record of benchmarks/blocks wrote there stays.

    Args:
        bundle: a bundle's folder.
        checkpoint: the checkpoint it was exported from, a folder or a hub name.
        progress: show a bar on stderr.
    Returns: "passed"; "graphs", by name: precision, cases, budget, and the largest relative L2 error of each output;
        "tasks", unless all is fp32: what ``fidelity.measure`` found on real tasks; versions and date. ``table``
        renders it.
    Raises: BundleError or CheckpointError if either cannot be read, or they do not belong together; BackendError if
        ONNX Runtime cannot run the bundle.
    """
    opened = Bundle.open(bundle)
    source = open_checkpoint(checkpoint)
    plans = _matching_plans(opened, source)
    graphs: dict[str, Any] = {}
    for plan in (bar := tqdm(plans, unit="graph", disable=not progress)):
        bar.set_description(plan.name)
        graphs[plan.name] = _compare(plan, opened, source)
    tasks = (
        {} if all(is_fp32(graph) for graph in opened.manifest.graphs.values()) else _run_tasks(opened, source, plans)
    )
    import onnxruntime

    report = {
        "passed": all(part["passed"] for part in (*graphs.values(), *tasks.values())),
        "graphs": graphs,
        **tasks,
        "framert": framert.__version__,
        "torch": version("torch"),
        "onnxruntime": onnxruntime.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    recorded = {name: value for name, value in opened.manifest.verified.items() if name in RECORDED}
    write_manifest(opened.path, replace(opened.manifest, verified=recorded | report))
    return report


def table(report: Mapping[str, Any]) -> str:
    """Return the report as lines of text: graph, output, error, budget."""
    rows = [
        f"{name:13} {output:14} {error:9.2e} of {graph['budget']:.0e}  {'ok' if error <= graph['budget'] else 'BEYOND'}"
        for name, graph in report["graphs"].items()
        for output, error in graph["errors"].items()
    ]
    if "tasks" in report:
        rows += fidelity.lines(report["tasks"])
    return "\n".join([*rows, "passed" if report["passed"] else "beyond the budget"])


def is_fp32(graph: Graph) -> bool:
    return graph.precision == "float32"


def faults(tasks: Mapping[str, Any], bundle: Bundle) -> list[str]:
    """Return what on real tasks is further off than rounding in the bundle's precisions can be, in words."""
    precision = {name: graph.precision for name, graph in bundle.manifest.graphs.items()}
    text, velocity = tasks["text"]["max"], max(level["max"] for level in tasks["velocity"].values())
    found = []
    if not text <= TASK_BUDGETS[precision["text_encoder"]]:
        found.append(f"{precision['text_encoder']} moves this checkpoint's text encoder by {text:.2g}")
    if not velocity <= TASK_BUDGETS[precision["denoiser"]]:
        found.append(f"{precision['denoiser']} moves this checkpoint's velocity by {velocity:.2g}")
    if broken := [name for name, value in tasks["latents_psnr"].items() if not np.isfinite(value)]:
        found.append(f"the latents of {', '.join(broken)} are not finite")
    return found


def _run_tasks(bundle: Bundle, checkpoint: Checkpoint, plans: Sequence[GraphPlan]) -> dict[str, Any]:
    tasks = fidelity.measure(bundle, runner(bundle), Oracle(plans, checkpoint, bundle.manifest.model))
    return {"tasks": tasks | {"passed": not faults(tasks, bundle)}}


def _matching_plans(bundle: Bundle, checkpoint: Checkpoint) -> tuple[GraphPlan, ...]:
    family = find_family(checkpoint)
    if family.name != bundle.manifest.family:
        raise CheckpointError(
            f"{checkpoint.folder} is of the family {family.name}, {bundle.path} of {bundle.manifest.family}; give the "
            "checkpoint that the bundle's provenance names"
        )
    plans = family.plans(checkpoint)
    check_tensors(checkpoint, {plan.part: stored_shapes(plan) for plan in plans})
    for plan in plans:
        graph = bundle.manifest.graphs.get(plan.name)
        if graph is None or dict(graph.inputs) != dict(plan.inputs) or dict(graph.outputs) != dict(plan.outputs):
            raise CheckpointError(
                f"{checkpoint.folder} is not what {bundle.path} was made of: its {plan.name} has other tensors; "
                "give the checkpoint that the bundle's provenance names"
            )
    return plans


def _compare(plan: GraphPlan, bundle: Bundle, checkpoint: Checkpoint) -> dict[str, Any]:
    family, backend = find_family(checkpoint), runner(bundle)
    inputs = family.cases(plan.name, bundle.manifest, checkpoint, lambda given: backend.run("conditioner", given))
    names = list(plan.outputs)
    # Its session is gone before the oracle's weights come: a full-size graph and its oracle do not fit together.
    actual = _outputs(bundle, plan.name, inputs)
    module = load_model(plan, checkpoint)
    smoothed = is_smoothed(bundle)
    if plan.name == "denoiser" and smoothed:
        made = list(bundle.manifest.graphs["conditioner"].outputs)

        def condition(given: cases.Case) -> Mapping[str, Array]:
            return dict(zip(made, _condition(module.model, given), strict=True))

        inputs = family.cases(plan.name, bundle.manifest, checkpoint, condition)
    errors = dict.fromkeys(names, 0.0)
    for case, found in zip(inputs, actual, strict=True):
        for name, exact in zip(names, run_model(module, list(case.values())), strict=True):
            unscaled = _unscaled(found[name], exact) if name == "modulation" and smoothed else found[name]
            errors[name] = max(errors[name], relative_error(unscaled, exact))
    precision = bundle.manifest.graphs[plan.name].precision
    budget = BUDGETS[precision]
    return {
        "precision": precision,
        "cases": len(inputs),
        "budget": budget,
        "errors": errors,
        **({"note": precisions.NOTES[precision]} if precision in precisions.NOTES else {}),
        "passed": max(errors.values()) <= budget,
    }


def is_smoothed(bundle: Bundle) -> bool:
    """Say whether factors were moved from the conditioner's multipliers into the denoiser's weights."""
    return bundle.manifest.graphs["denoiser"].precision in {precisions.WORDS[word] for word in SMOOTHED}


def _unscaled(value: Array, exact: Array) -> Array:
    """Return multipliers without the factor that smoothing gave each channel: the one that fits all rows best."""
    factor = (value * exact).sum(0) / np.maximum(np.square(exact).sum(0), 1e-30)
    unscaled: Array = value / np.where(factor == 0, 1, factor)
    return unscaled


def _condition(model: Any, given: cases.Case) -> list[Array]:
    with torch.no_grad():
        return [
            made.numpy() for made in model.condition(**{name: torch.from_numpy(value) for name, value in given.items()})
        ]


def _outputs(bundle: Bundle, name: str, inputs: Sequence[cases.Case]) -> list[Mapping[str, Array]]:
    backend = runner(bundle)
    return [backend.run(name, case) for case in inputs]
