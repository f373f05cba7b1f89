"""The plugin through the real parser and builder of TensorRT-RTX: who runs FrameAttention, and what the engine holds.

In processes of their own: plugins are registered per process, kernels do not compile where Triton interprets, and
without the second name of its library TensorRT-RTX ends the process when a plugin is added.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'framert[tensorrt-rtx]'")
pytest.importorskip("triton", reason="needs triton: pip install 'framert[triton]'")

from framert.export.tensorrt.builder import Options, build
from framert.export.tensorrt.plugin_nodes import strip_functions
from framert.runtime.errors import ConfigError
from framert.runtime.manifest import Manifest

DEPTH = 8  # layers of models/blocks
TARGETS = ("sm_86", "sm_89", "sm_120")  # of one engine

# Counts layers by type of networks parsed with and without the plugin, and builds the denoiser for three GPUs with it.
DRIVE = """
import collections, json, sys
from pathlib import Path
from framert.export.model_shape import model_shape
from framert.export.tensorrt import builder, plugin
from framert.export.tensorrt.api import load
from framert.export.tensorrt.prepare import prepare
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError

bundle, quantized, work, targets = Bundle.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
api = load("tensorrt-rtx")

def layers(content, path):
    network = api.network(api.builder())
    try:
        parser = api.parse(network, path, content)
    except BackendError as error:
        return {"refused": str(error)}
    kinds = [network.get_layer(index).type.name for index in range(network.num_layers)]
    return collections.Counter(kinds)

found = {}
shape = model_shape(bundle.path)
made = plugin.Plugin(form="plugin", launches=plugin.compile_kernels(shape, "fp16", targets))
found["padded"] = layers(prepare(bundle, "denoiser", "fp16", work).content, work / "denoiser.onnx")
stripped = prepare(bundle, "denoiser", "fp16", work, plugin=made)
found["nobody"] = layers(stripped.content, stripped.file)
whole = bundle.graph_path("denoiser")
found["function alone"] = layers(None, whole)
with made.registered(api):
    found["plugin"] = layers(stripped.content, stripped.file)
fp32 = plugin.Plugin(form="plugin", launches=plugin.compile_kernels(shape, "fp32", targets[:1]))
with fp32.registered(api):
    found["plugin beside the function"] = layers(None, whole)
found["after"] = layers(None, whole)

plan = builder.profiles.plan_profiles
builder.profiles.plan_profiles = lambda *given, **more: {
    name: table for name, table in plan(*given, **more).items() if name in ("conditioner", "denoiser")
}
built = builder.build(
    bundle.path, work / "engines", targets=targets, backend="tensorrt-rtx", precision="fp16", progress=False,
    capacity=builder.Capacity(tokens=(256,), sequences=2), options=builder.Options(attention="plugin"),
)
more = builder.build(
    quantized, work / "quantized", targets=targets[:1], backend="tensorrt-rtx", precision="fp16", progress=False,
    capacity=builder.Capacity(tokens=(256,), sequences=2), options=builder.Options(attention="plugin"),
)
found["quantized"] = {one.graph: one.plugins for one in more}
engine = (work / "engines" / "denoiser.engine").read_bytes()
found["built"] = {one.graph: one.plugins for one in built}
found["cubins inside"] = [engine.count(launch.image) for launch in made.launches]
found["hashes"] = [launch.kernel_hash for launch in made.launches]
found["digest"] = made.digest
print(json.dumps(found))
"""


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
def test_the_plugin_runs_attention_where_it_is_registered(
    blocks_bundle: Path, quantized_blocks: Callable[[str], Path], tmp_path: Path
) -> None:
    done = run(DRIVE, blocks_bundle, quantized_blocks("int8"), tmp_path, *TARGETS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # The node's plugin_namespace makes the plugin win over the function that stands beside it.
    for name in ("plugin", "plugin beside the function"):
        assert found[name]["PLUGIN_V3"] == DEPTH
        assert "SOFTMAX" not in found[name]
    # Without the plugin: TensorRT's own operators, or a refusal that names the node; never another attention.
    assert found["padded"]["SOFTMAX"] == 2 * DEPTH
    assert "PLUGIN_V3" not in found["padded"]
    assert "(FrameAttention)" in found["nobody"]["refused"]
    for name in ("function alone", "after"):
        assert "(SequenceEmpty)" in found[name]["refused"]
    assert found["built"] == found["quantized"] == {"conditioner": 0, "denoiser": DEPTH}
    assert all(count >= 1 for count in found["cubins inside"])  # layers may share one
    manifest = Manifest.from_json(json.loads((tmp_path / "engines" / "manifest.json").read_text()))
    assert (manifest.target["attention"], manifest.target["plugins"]) == ("plugin", "FrameAttention")
    kernels = zip(TARGETS, found["hashes"], strict=True)
    assert manifest.target["kernels"] == ",".join(f"{target}:{digits[:16]}" for target, digits in kernels)
    assert "window" not in manifest.graphs["denoiser"].inputs
    profiles = json.loads((tmp_path / "engines" / "profiles.json").read_text())["denoiser"]
    assert [set(profile) & {"longest", "text_longest"} for profile in profiles] == [set()]
    assert len(found["digest"]) == 64


REFUSED = """
import sys
from framert.export.tensorrt import plugin
from framert.export.tensorrt.api import load
from framert.kernels.plugin import frame_attention
from framert.runtime.bundle import Bundle
api = load("tensorrt-rtx")
api.prepare_plugins()
first = frame_attention.creator(api.module)
api.module.get_plugin_registry().register_creator(first, "framert")
with plugin.Plugin(form="plugin", launches=()).registered(api):
    pass
"""


def test_a_second_plugin_of_that_name_is_refused() -> None:
    done = run(REFUSED)
    assert done.returncode == 1
    assert "BackendError: another plugin FrameAttention is registered in this process" in done.stderr


def test_targets_without_kernels_are_refused(blocks_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown target 'sm_75'; choose one of sm_80"):
        build(
            blocks_bundle, tmp_path / "b", targets=["sm_75"], backend="tensorrt-rtx", progress=False,
            options=Options(attention="plugin"),
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="attention is 'fused'; choose one of padded, plugin, aot, library"):
        Options(attention="fused")


def test_functions_are_stripped_and_nodes_stay(blocks_bundle: Path) -> None:
    model = onnx.load(blocks_bundle / "denoiser.onnx")
    assert strip_functions(model) == DEPTH
    assert not model.functions
    assert sum(node.op_type == "FrameAttention" for node in model.graph.node) == DEPTH
    assert strip_functions(onnx.load(blocks_bundle / "conditioner.onnx")) == 0
