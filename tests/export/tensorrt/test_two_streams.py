"""Bundles whose text is part of the sequence, prepared for TensorRT: the same numbers, and graphs that it takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image

import framert
from framert.export.families import univg_cases
from framert.export.tensorrt import builder
from framert.export.tensorrt.builder import Options, build
from framert.export.tensorrt.lower import OPERATORS
from framert.export.tensorrt.padded import write_padded
from framert.export.tensorrt.prepare import prepare
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.manifest import Manifest
from framert.runtime.profiles import Capacity

SMALL = Capacity(tokens=(256,), sequences=4, side=64)
BUDGETS = {None: 1e-5, "fp16": 5e-3}
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
# Texts and pictures of unlike length, one to three branches each.
REQUESTS = {
    "sd3": [
        framert.Request(task="text_to_image", prompt="a red cube", size=(48, 32), steps=3, seed=1),
        framert.Request(task="text_to_image", prompt="the", size=(32, 16), steps=2, seed=2, guidance=1.0),
    ],
    "univg": [
        framert.Request(task="text_to_image", prompt="a red cube", size=(48, 32), steps=3, seed=1),
        framert.Request(task="edit", images=[PICTURE], prompt="make it red " * 9, size=(32, 32), steps=2, seed=2),
        framert.Request(task="identity", images=[PICTURE] * 2, prompt="a cube", size=(16, 32), steps=2, seed=3),
    ],
}  # fmt: skip


def relative(found, exact):
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def bundles(sd3_bundle, univg_bundle):
    return {"sd3": sd3_bundle, "univg": univg_bundle}


@pytest.fixture(scope="module")
def padded(bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("padded")
    made = {}
    for name, bundle in bundles.items():
        made[name] = write_padded(bundle, folder / name, capacity=SMALL, progress=False)
    return made


def window(case):
    return {"window": np.arange(int((case["q_range"] + case["text_range"])[:, 1].max()), dtype=np.int32)}


def cases_of(manifest: Manifest, conditioner):
    names = ["text", "modulation"]
    return univg_cases.denoiser_cases(
        manifest, lambda feeds: dict(zip(names, conditioner.run(names, feeds), strict=True))
    )


@pytest.mark.parametrize("half", [None, "fp16"], ids=str)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_prepared_denoiser_gives_what_the_bundles_own_gives(name, half, bundles, open_session, tmp_path):
    bundle = Bundle.open(bundles[name])
    ready = prepare(bundle, "denoiser", half, tmp_path)
    assert list(ready.graph.inputs) == [*bundle.manifest.graphs["denoiser"].inputs, "window"]
    assert ready.graph.inputs["window"].shape == ("longest",)
    session, own = open_session(ready.content), open_session(bundle.graph_path("denoiser"))
    for case in cases_of(bundle.manifest, open_session(bundle.graph_path("conditioner"))):
        found, exact = session.run(None, case | window(case)), own.run(None, case)
        assert relative(np.stack(found), np.stack(exact)) <= BUDGETS[half]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_padded_bundle_makes_the_same_pictures_packed_raggedly(name, padded, bundles):
    asked = REQUESTS[name]
    plain = [framert.load(bundles[name], threads=1).engine().submit(request).result() for request in asked]
    engine = framert.load(padded[name], threads=1).engine()
    tickets = [engine.submit(request) for request in asked]
    for ticket, exact in zip(tickets, plain, strict=True):
        result = ticket.result()
        assert relative(result.latents, exact.latents) < 1e-4
        assert np.abs(result.pixels - exact.pixels).max() < 1e-3


def test_a_padded_bundle_has_all_tokenizers_and_sizes_for_trtexec(padded):
    opened = Bundle.open(padded["sd3"])
    assert {spec.file for spec in opened.manifest.tokenizers.values()} <= set(opened.manifest.files)
    lines = (padded["univg"] / "trtexec.sh").read_text().splitlines()
    (fixed,) = (line for line in lines if "image_encoder.onnx" in line)
    assert fixed.endswith("--skipInference")
    (most,) = re.findall(r"--maxShapes=(\S+)", next(line for line in lines if "denoiser.onnx" in line))
    sizes = dict(part.split(":") for part in most.split(","))
    # a third of the tokens and the longest prompt; the longest prompts of all sequences; a row for each slot and one
    assert (sizes["window"], sizes["text_source"], sizes["conditions"]) == ("341", "1024", "257x68")


@pytest.mark.usefixtures("rtx")
def test_every_graph_is_built(bundles, tmp_path: Path):
    """With fixed sizes (the image encoder), with features that may be none, and the joint order made in the graph."""
    source = Bundle.open(bundles["univg"])
    built = build(source.path, tmp_path / "b", targets=["sm_89"], backend="tensorrt-rtx", precision="fp16",
                  capacity=Capacity(tokens=(256,), sequences=3, side=64), progress=False)  # fmt: skip
    assert [one.graph for one in built] == list(source.manifest.graphs)
    opened = Bundle.open(tmp_path / "b").manifest
    assert {graph.precision for graph in opened.graphs.values()} == {"float16"}
    assert (opened.family, opened.tokenizers) == ("univg", source.manifest.tokenizers)


@pytest.mark.usefixtures("rtx")
def test_clips_are_parsed(padded):
    from framert.export.tensorrt.api import load

    api, graph = load("tensorrt-rtx"), Bundle.open(padded["sd3"]).manifest.graphs["text_encoder"]
    network = api.network(builder := api.builder())
    parser = api.parse(network, padded["sd3"] / graph.files[0])
    assert {network.get_input(index).name for index in range(network.num_inputs)} == set(graph.inputs)
    del parser, builder


PLUGIN = """
import json, sys
from framert.export.tensorrt import builder
from framert.runtime.profiles import Capacity
plan = builder.profiles.plan_profiles
builder.profiles.plan_profiles = lambda *given, **more: {"denoiser": plan(*given, **more)["denoiser"]}
(built,) = builder.build(
    sys.argv[1], sys.argv[2], targets=["sm_89"], backend="tensorrt-rtx", precision="fp16", progress=False,
    capacity=Capacity(tokens=(256,), sequences=3), options=builder.Options(attention="plugin"),
)
print(json.dumps([built.plugins, sorted(json.load(open(sys.argv[2] + "/profiles.json"))["denoiser"][0])]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_the_plugin_attends_without_a_text_beside(bundles, tmp_path):
    """Every attention is the plugin's: two joint ones, and the image's own."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PLUGIN, bundles["sd3"], tmp_path / "b"], capture_output=True,
                          text=True, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    plugins, axes = json.loads(done.stdout.splitlines()[-1])
    assert plugins == 3
    assert "text_tokens" in axes
    assert not {"longest", "text_longest"} & set(axes)


def test_the_form_without_python_is_refused(bundles, tmp_path):
    api = type(
        "Installed", (), {"check_targets": lambda *_: None, "builder": lambda _: None, "config": lambda *_, **__: None}
    )()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "load", lambda _: api)
        with pytest.raises(BackendError, match="'aot' attends to a text beside each sequence, and this bundle's text"):
            builder.build(bundles["univg"], tmp_path / "b", targets=["sm_89"], options=Options(attention="aot"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("half", [None, "fp16"], ids=str)
@pytest.mark.parametrize("name", ["text_encoder", "denoiser"])
def test_operators_that_old_parsers_lack_are_written_in_older_ones(name, half, bundles, open_session, tmp_path):
    """Gelu as CLIP has it and as the transformer has it, and the norms of queries and keys."""
    bundle = Bundle.open(bundles["sd3"])
    assert "Gelu" in {node.op_type for node in onnx.load(bundle.graph_path(name)).graph.node}
    made, own = (prepare(bundle, name, half, tmp_path, missing=missing) for missing in (OPERATORS, ()))
    proto = onnx.load_from_string(made.content)
    assert not {node.op_type for node in proto.graph.node} & set(OPERATORS)
    inputs = open_session(bundle.graph_path(name)).get_inputs()
    if name == "denoiser":
        case = cases_of(bundle.manifest, open_session(bundle.graph_path("conditioner")))[1]
        case |= window(case)
    else:
        case = {one.name: np.arange(1, 78, dtype=np.int64)[None] for one in inputs}
    session, exact = open_session(made.content), open_session(own.content or own.file)
    for found, expected in zip(session.run(None, case), exact.run(None, case), strict=True):
        assert relative(found, expected) <= (1e-6 if half is None else 2e-3)
