"""A bundle of emulated engines, written the way ``framert build`` writes real ones."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from framert.export.tensorrt.prepare import prepare
from framert.export.tensorrt.source import beside_graphs
from framert.kernels.plugin.launch import Launch, pack
from framert.runtime import profiles
from framert.runtime.bundle import Bundle, file_specs, new_bundle, write_manifest


def build(
    module: Any,
    bundle: Path,
    output: Path,
    *,
    version: str,
    kind: str = "tensorrt",
    targets: Sequence[str] = ("sm_89",),
    capacity: profiles.Capacity | None = None,
    launches: Sequence[Launch] = (),
    streamable: int = 0,
    built: dict[str, Any] | None = None,
) -> Path:
    """Write engines of an exported bundle.

    Args:
        module: emulated/tensorrt.py. launches: kernels of the plugin; none for engines of standard operators, whose
            attention is then the padded one that TensorRT is given.
        built: what the manifest says beside of how they were built.
    """
    opened = Bundle.open(bundle)
    plugin, capacity = bool(launches), capacity or profiles.Capacity()
    table = profiles.plan_profiles(opened.manifest, capacity, plugin=plugin)
    graphs = {}
    with new_bundle(output) as folder, tempfile.TemporaryDirectory() as work:
        for number, (name, rows) in enumerate(table.items()):
            if plugin:
                graph, proto = opened.manifest.graphs[name], onnx.load(opened.graph_path(name))
                _zero_the_rest(proto)
            else:
                ready = prepare(opened, name, None, Path(work))
                graph = ready.graph
                proto = onnx.load(ready.file) if ready.content is None else onnx.load_from_string(ready.content)
            proto.graph.name = name
            content = module.write(
                proto.SerializeToString(),
                [profiles.shapes(graph.inputs, row) for row in rows],
                version=version,
                capabilities=targets,
                size=module.BLOCK * (number + 1),
                kernels=pack(launches) if plugin and name == "denoiser" else b"",
                streamable=streamable,
                host_code=(built or {}).get("compatible") == "version",
            )
            (folder / f"{name}.engine").write_bytes(content)
            graphs[name] = replace(graph, files=(f"{name}.engine",))
        for file in beside_graphs(opened.manifest):
            shutil.copyfile(opened.path / file, folder / file)
        (folder / "profiles.json").write_text(json.dumps(profiles.to_json(table)))
        target = {"kind": kind, "version": version, "compute_capability": ",".join(targets)}
        if plugin:
            kernels = ",".join(f"{launch.target}:{launch.kernel_hash[:16]}" for launch in launches)
            target |= {"plugins": "FrameAttention", "kernels": kernels}
        origin = {"built": {"capacity": asdict(capacity), "compatible": "none", **(built or {})}}
        manifest = replace(opened.manifest, target=target, graphs=graphs, files=file_specs(folder), verified={},
                           provenance={**opened.manifest.provenance, **origin})  # fmt: skip
        write_manifest(folder, manifest)
    return output


def _zero_the_rest(model: onnx.ModelProto) -> None:
    """Let the bundle's own function compute what the kernel would, which zeroes tokens behind all sequences."""
    for function in model.functions:
        if function.name == "FrameAttention":
            (output,) = function.output
            for node in function.node:
                node.output[:] = ["covered" if name == output else name for name in node.output]
            function.node.extend([
                helper.make_node("Shape", ["query"], ["all_tokens"], start=0, end=1),
                helper.make_node("Shape", ["covered"], ["covered_tokens"], start=0, end=1),
                helper.make_node("Sub", ["all_tokens", "covered_tokens"], ["tokens_left"]),
                helper.make_node("Constant", [], ["nothing_before"], value_ints=[0, 0, 0]),
                helper.make_node("Constant", [], ["nothing_within"], value_ints=[0, 0]),
                helper.make_node("Concat", ["nothing_before", "tokens_left", "nothing_within"], ["pads"], axis=0),
                helper.make_node("Pad", ["covered", "pads"], [output]),
            ])  # fmt: skip
