"""Checkpoint -> bundle: opens and checks the checkpoint, then traces and writes one graph after another."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from tqdm import tqdm

import framert
from framert.export import fidelity, frame_attention, traced
from framert.export import precision as precisions
from framert.export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from framert.export.families.find import find_family
from framert.export.keep_high import PARTS, KeepHigh, parse
from framert.export.oracle import Oracle
from framert.export.passes import clean, fold_weights
from framert.export.plan import GraphPlan
from framert.export.quantize.prepare import prepare
from framert.export.quantize.recipe import HALVES, Recipe
from framert.export.trace import name_ends, parameters, stored_shapes, trace
from framert.export.verify import faults
from framert.export.weights import write_model
from framert.export.written import runner
from framert.runtime.bundle import Bundle, file_specs, new_bundle, write_manifest
from framert.runtime.errors import BackendError, ConfigError
from framert.runtime.manifest import Graph, Manifest, ModelSpec


def export(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    native_side: int | None = None,
    precision: str | Mapping[str, str] = "fp32",
    target: str = "onnx",
    keep_high: str | Mapping[str, str | Sequence[str]] | None = None,
    check: bool = True,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Make a bundle of a checkpoint.

    Args:
        checkpoint: a folder in the published layout, or the name of a hub repository.
        output: the bundle's folder; it appears whole or not at all.
        native_side: side of the pictures the model was trained on, in pixels; None takes "native_side" of
            transformer/config.json, or else what the family's published models have.
        precision: one word for denoiser and text encoder, "part=word" pairs joined by commas or a mapping of them, or
            "auto"; see ``export.precision``.
        target: "onnx", or "tensorrt" for graphs in the form that its builder takes.
        keep_high: products of quantized parts that stay in fp32, such as "denoiser=first,last"; see
            ``export.keep_high``.
        check: run real tasks on a bundle that is not all fp32, and beside it on the checkpoint in fp32; the manifest
            then says how near they are. A large model needs its weights in memory for that, and time.
        force: replace a bundle that stands at ``output``.
        progress: show a bar on stderr.
    Returns: the path of the bundle.
    Raises: CheckpointError for a checkpoint that does not fit; BundleError if ``output`` cannot be written;
        ConfigError for a ``native_side`` the model cannot have, a precision that does not exist, or one that is
            beyond its budget on this checkpoint.
    """
    words = precisions.parts(precision, target)
    kept = parse(keep_high, words)
    with new_bundle(output, force=force) as folder:
        opened = open_checkpoint(checkpoint)
        family = find_family(opened)
        plans, model = family.plans(opened), family.model(opened)
        side = _native_side(family.native_side(opened) if native_side is None else native_side, model)
        check_tensors(opened, {plan.part: stored_shapes(plan) for plan in plans})
        for part, each in kept.items():  # before calibration, which takes long on a large model
            each.chosen([name for name, stored in opened.tensors[PARTS[part]].items() if len(stored.shape) == 2])
        tokenizers = family.write_tokenizers(opened, folder)
        manifest = Manifest(
            family=family.name,
            native_side=side,
            model=model,
            schedule=family.schedule(opened),
            prompt_tokens=max((spec.max_tokens for spec in tokenizers.values()), default=family.prompt_tokens),
            guidance_branches=family.guidance_branches,
            target={"kind": "onnx"},
            graphs={plan.name: _signature(plan, "float32") for plan in plans},  # what calibration runs on: the oracle
            files={},
            tokenizers=tokenizers,
        )
        oracle = Oracle(plans, opened, model)
        recipes = prepare(Bundle(folder, manifest), opened, oracle, words)
        graphs: dict[str, Graph] = {}
        for plan in (bar := tqdm(plans, unit="graph", disable=not progress)):
            bar.set_description(plan.name)
            word = words[precisions.PART_OF.get(plan.name, plan.name)]
            recipe = replace(recipes[plan.part], kept=kept.get(plan.name, KeepHigh()))
            graphs[plan.name] = _export_graph(plan, recipe, word, model.softcap, folder, target)
        provenance = _provenance(opened) | {"precision": words}
        if kept:
            provenance["keep_high"] = {part: list(each.items) for part, each in kept.items()}
        manifest = replace(manifest, graphs=graphs, files=file_specs(folder), provenance=provenance)
        if check and set(words.values()) != {"fp32"}:
            manifest = replace(manifest, verified=_tasks(Bundle(folder, manifest), oracle))
        write_manifest(folder, manifest)
    return Path(output)


def _export_graph(plan: GraphPlan, recipe: Recipe, word: str, softcap: float, folder: Path, target: str) -> Graph:
    model = trace(plan)
    clean(model)
    name_ends(model.graph, plan)
    inputs = parameters(model.graph, plan)
    weights = fold_weights(
        model.graph, inputs, {name: recipe.weights[name] for value in inputs if (name := str(value.name))}
    )
    weights = recipe.apply(model, plan.name, word, weights, signed=target == "tensorrt")
    functions = _functions(model, softcap, HALVES.get(word, onnx.TensorProto.FLOAT))
    files = write_model(model, weights, functions, folder, plan.name)
    return replace(_signature(plan, precisions.WORDS[word]), files=files)


def _signature(plan: GraphPlan, precision: str) -> Graph:
    return Graph(files=(), precision=precision, inputs=dict(plan.inputs), outputs=dict(plan.outputs))


def _functions(model: ir.Model, softcap: float, dtype: int) -> list[onnx.FunctionProto]:
    """Return the local functions of the graph's nodes: one with or without text, as all its nodes are."""
    nodes = [node for node in model.graph if node.domain == traced.DOMAIN]
    text = any(len(node.inputs) > len(frame_attention.OWN) for node in nodes)
    return [frame_attention.function(softcap, dtype, text=text)] if nodes else []


def _tasks(bundle: Bundle, oracle: Oracle) -> dict[str, Any]:
    """Return what real tasks show of a new bundle. Raises: ConfigError if they show that it must not be used."""
    try:
        tasks = fidelity.measure(bundle, runner(bundle), oracle)
    except BackendError as error:
        raise ConfigError(f"this export cannot be measured here: {error}; --unchecked makes it all the same") from error
    if found := faults(tasks, bundle):
        raise ConfigError(
            f"on real tasks {' and '.join(found)}, which is no rounding any more; choose another precision"
        )
    return {"tasks": tasks | {"passed": True}}


def _native_side(side: int, model: ModelSpec) -> int:
    if not isinstance(side, int) or side <= 0 or side % model.multiple or side > model.max_side:
        raise ConfigError(
            f"native_side is {side}; give the side of the pictures the model was trained on, "
            f"a multiple of {model.multiple} up to {model.max_side}"
        )
    return side


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.name,
        "files": checkpoint.digests(),
        "framert": framert.__version__,
        "torch": version("torch"),
        "threads": torch.get_num_threads(),  # sums of a calibration, and so an int8 bundle's last bits, depend on it
        "onnx": version("onnx"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
