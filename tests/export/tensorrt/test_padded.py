"""A bundle with padded attention: the same pictures on ONNX Runtime, and graphs that TensorRT takes whole."""

import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import framert
from framert.export.tensorrt.api import load
from framert.export.tensorrt.padded import write_padded
from framert.runtime.bundle import Bundle
from framert.runtime.cli import main
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.errors import BackendError, BundleError, ConfigError

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def padded(golden_bundle, tmp_path_factory):
    return write_padded(golden_bundle, tmp_path_factory.mktemp("padded") / "golden.padded", progress=False)


def test_it_makes_the_same_pictures(padded, golden_bundle):
    call = {"images": [GOLDEN / "input_0.png"], "size": (48, 32), "steps": 2, "seed": 1}
    first = framert.load(golden_bundle, threads=1).run("image_to_depth", **call)
    second = framert.load(padded, threads=1).run("image_to_depth", **call)
    error = np.linalg.norm(first.latents - second.latents) / np.linalg.norm(first.latents)
    assert error < 1e-4  # the bound of golden latents: products of other shapes round otherwise


def test_nothing_of_the_loop_is_left(padded):
    model = onnx.load(padded / "denoiser.onnx", load_external_data=False)
    assert not model.functions
    assert not {"Loop", "FrameAttention", "ConcatFromSequence"} & {node.op_type for node in model.graph.node}
    graph = Bundle.open(padded).manifest.graphs["denoiser"]
    assert {"window", "text_window"} < set(graph.inputs)
    assert graph.inputs["window"].shape == ("longest",)


def test_the_script_names_every_graph_with_its_sizes(golden_bundle, tmp_path):
    out = tmp_path / "small"
    words = ["--tokens=8,64", "--sequences=3", "--side=64", "-o", str(out), "--quiet"]
    assert main(["build", str(golden_bundle), "--backend=onnxruntime", *words]) == 0
    script = out / "trtexec.sh"
    lines = [line for line in script.read_text().splitlines() if line.startswith('"$TRTEXEC"')]
    bundle = Bundle.open(out)
    assert len(lines) == len(bundle.manifest.graphs)
    for line, (name, graph) in zip(lines, bundle.manifest.graphs.items(), strict=True):
        assert f"--onnx={graph.files[0]} --saveEngine={name}.engine --stronglyTyped --noTF32" in line
        for word in ("min", "opt", "max"):
            (text,) = re.findall(rf"--{word}Shapes=(\S+)", line)
            dynamic = {key for key, spec in graph.inputs.items() if any(isinstance(side, str) for side in spec.shape)}
            assert {part.split(":")[0] for part in text.split(",")} == dynamic
    assert "window:32" in next(line for line in lines if "denoiser" in line).split("--maxShapes=")[1]
    assert subprocess.run(["sh", "-n", script]).returncode == 0


def test_tensorrt_10_3_has_its_operators(padded):
    for name in Bundle.open(padded).manifest.graphs:
        model = onnx.load(padded / f"{name}.onnx", load_external_data=False)
        assert not {"RMSNormalization", "RotaryEmbedding"} & {node.op_type for node in model.graph.node}, name


def test_tensorrt_parses_every_graph_whole(padded):
    """As the provider and trtexec do, from the files: the parser refuses a graph that it would have to cut."""
    pytest.importorskip("tensorrt_rtx")
    api = load("tensorrt-rtx")
    for name, graph in Bundle.open(padded).manifest.graphs.items():
        network = api.network(builder := api.builder())
        parser = api.parse(network, padded / graph.files[0])
        assert {network.get_input(index).name for index in range(network.num_inputs)} == set(graph.inputs), name
        assert {network.get_output(index).name for index in range(network.num_outputs)} == set(graph.outputs), name
        del parser, builder


def test_a_request_compiled_for_the_source_fits(padded, golden_bundle):
    request = framert.Request(task="text_to_image", prompt="a cube", size=(32, 32), steps=1)
    compile_requests(Bundle.open(golden_bundle), [request]).check_bundle(Bundle.open(padded))


def test_half_precision_is_in_the_graphs(golden_bundle, tmp_path):
    out = tmp_path / "half"
    assert main(["build", str(golden_bundle), "--backend=onnxruntime", "--precision=fp16", "-o", str(out)]) == 0
    manifest = Bundle.open(out).manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"float16"}


def test_bad_calls(padded, golden_bundle, tmp_path, capsys):
    with pytest.raises(BundleError, match="padded attention already"):
        write_padded(padded, tmp_path / "twice", progress=False)
    with pytest.raises(ConfigError, match="precision is 'int8'"):
        write_padded(golden_bundle, tmp_path / "int8", precision="int8", progress=False)
    with pytest.raises(BundleError, match="exists"):
        write_padded(golden_bundle, padded, progress=False)
    out = str(tmp_path / "out")
    for word in ("--target=sm_87", "--attention=aot"):
        assert main(["build", str(golden_bundle), "--backend=onnxruntime", word, "-o", out]) == 2
        assert f"{word.split('=')[0]} is for engines" in capsys.readouterr().err
    assert main(["build", str(golden_bundle), "-o", out]) == 2
    assert "--target is missing" in capsys.readouterr().err
    for attention in ("padded", "plugin"):
        assert main(["build", str(padded), "--target=sm_89", f"--attention={attention}", "-o", out]) == 2
        assert "has padded attention already; run it with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("backend", "options"), [("openvino", {}), ("triton", {"impl": "reference"})])
def test_a_backend_that_gives_no_windows_refuses_it(backend, options, padded):
    """Without them it would attend to whatever the missing input holds."""
    pytest.importorskip(backend)
    with pytest.raises(BackendError, match=f"has padded attention, which backend '{backend}' does not run; give the"):
        framert.load(padded, backend=backend, **options)
