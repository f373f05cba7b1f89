"""What a bundle holds, for people and for scripts."""

import os
from collections.abc import Mapping
from typing import Any

from framert.runtime.bundle import Bundle
from framert.runtime.manifest import TensorSpec


def describe(bundle: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the checked contents of a bundle: graphs, sizes, precision, limits, errors measured, origin.

    Raises: BundleError if it is missing, damaged or of another format.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    model = manifest.to_json()["model"]
    graphs = {
        name: {
            "precision": graph.precision,
            "bytes": sum(manifest.files[file].size for file in graph.files),
            "files": list(graph.files),
            "inputs": {tensor: _signature(spec) for tensor, spec in graph.inputs.items()},
            "outputs": {tensor: _signature(spec) for tensor, spec in graph.outputs.items()},
        }
        for name, graph in manifest.graphs.items()
    }
    return {
        "path": str(opened.path),
        "format": manifest.format,
        "family": manifest.family,
        "target": dict(manifest.target),
        "bytes": sum(file.size for file in manifest.files.values()),
        "graphs": graphs,
        "model": model,
        "limits": {
            "native_side": manifest.native_side,
            "size_multiple": manifest.model.multiple,
            "max_side": manifest.model.max_side,
            "max_frames": manifest.model.max_frames,
            "prompt_tokens": manifest.prompt_tokens,
            "guidance_branches": manifest.guidance_branches,
            "tokens": {name: spec.max_tokens for name, spec in manifest.tokenizer_specs().items()},
        },
        "verified": dict(manifest.verified),
        "provenance": dict(manifest.provenance),
    }


def render(description: Mapping[str, Any]) -> str:
    """Return a description as text for a terminal."""
    limits, model, origin = description["limits"], description["model"], description["provenance"]
    target = ", ".join(description["target"].values())
    lines = [
        f"{description['path']}: {description['family']} for {target}, {_size(description['bytes'])}, "
        f"format {description['format']}",
        f"  transformer    {model['depth']} layers, {model['hidden_size']} wide, {model['heads']} heads on "
        f"{model['kv_heads']}, softcap {model['softcap']:g}",
        f"  pictures       best near {limits['native_side']} pixels; sides are multiples of {limits['size_multiple']} "
        f"up to {limits['max_side']}; up to {limits['max_frames']} frames",
        f"  prompts        {_prompts(limits)}",
        f"  made from      {origin.get('checkpoint', 'unknown')}, {origin.get('date', 'date unknown')}, "
        f"framert {origin.get('framert', 'unknown')}",
    ]
    measured = description["verified"].get("graphs", {})
    for name, graph in description["graphs"].items():
        errors = measured.get(name, {}).get("errors")
        error = f"error {max(errors.values()):.1e}" if errors else "not verified"
        note = measured.get(name, {}).get("note")
        lines.append(
            f"  {name:14} {graph['precision']:8} {_size(graph['bytes']):>9}  {error}{f', {note}' if note else ''}"
        )
    for side, found in description["verified"].get("evaluation", {}).items():
        lines.append(
            f"  evaluated      {side}, {len(found['tasks'])} tasks on {found['run']['scenes']} scenes: {_loss(found)}"
        )
    return "\n".join(lines)


def _loss(found: Mapping[str, Any]) -> str:
    if "largest" not in found:
        return "no reference"
    worst = found["largest"]
    return (
        f"largest loss {worst['loss']:.2%} ({worst['low']:.2%} to {worst['high']:.2%}), {worst['metric']} of "
        f"{worst['task']}, against {found['against']}"
    )


def _prompts(limits: Mapping[str, Any]) -> str:
    """Return how long prompts may be, by input of the text encoder where there are several."""
    if len(limits["tokens"]) == 1:
        return f"{limits['prompt_tokens']} tokens"
    inputs: dict[int, list[str]] = {}
    for name, count in limits["tokens"].items():
        inputs.setdefault(count, []).append(name)
    parts = [f"{count} for {' and '.join(names)}" for count, names in inputs.items()]
    return ", ".join([parts[0].replace(" for ", " tokens for "), *parts[1:]])


def _signature(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(str(side) for side in spec.shape)}]"


def _size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"
