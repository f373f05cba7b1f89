"""examples/cpp: its step loop, compiled and run on the real graphs, gives what ``run`` gives.

TensorRT's headers are no Python package, so the loop runs here on graphs that call back into ONNX Runtime.
"""

import ctypes
import re
import shutil
import subprocess
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import framert
from framert.runtime import backends
from framert.runtime.bundle import Bundle
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.images import to_picture
from framert.runtime.tables import Tables

ROOT = Path(__file__).parents[2]
EXAMPLE, GOLDEN = ROOT / "examples" / "cpp", ROOT / "tests" / "golden"
DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64}
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")

Shape = ctypes.POINTER(ctypes.c_int64)
FUNCTIONS = {
    "open": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p),
    "close": ctypes.CFUNCTYPE(None, ctypes.c_int),
    "names": ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    "set": ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, Shape, ctypes.c_void_p),
    "carry": ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p),
    "run": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int),
    "shape": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, Shape),
    "get": ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p),
}
TAKE = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, Shape, ctypes.POINTER(ctypes.c_float)
)


class Callbacks(ctypes.Structure):
    _fields_ = tuple(FUNCTIONS.items())


class Graphs:
    """Graphs of a bundle on ONNX Runtime, as the example's Graph interface has them."""

    def __init__(self, bundle, backend):
        self.manifest, self.backend = bundle.manifest, backend
        self.opened, self.held, self.inputs, self.made, self.texts = [], set(), {}, {}, {}
        self.table = Callbacks(**{name: kind(getattr(self, name)) for name, kind in FUNCTIONS.items()})

    def open(self, name):
        self.opened.append(name.decode())
        graph = len(self.opened) - 1
        assert not self.held, "two graphs are held at once"
        self.held.add(graph)
        self.inputs[graph] = {}
        return graph

    def close(self, graph):
        self.held.remove(graph)

    def names(self, graph, outputs):
        spec = self.manifest.graphs[self.opened[graph]]
        text = ctypes.c_char_p(" ".join(spec.outputs if outputs else spec.inputs).encode())
        self.texts[graph, outputs] = text  # it must outlive the call
        return ctypes.cast(text, ctypes.c_void_p).value

    def set(self, graph, name, dtype, sides, shape, values):
        sizes, kind = [shape[side] for side in range(sides)], np.dtype(DTYPES[dtype.decode()])
        raw = ctypes.string_at(values, int(np.prod(sizes, dtype=np.int64)) * kind.itemsize)
        self.inputs[graph][name.decode()] = np.frombuffer(raw, kind).reshape(sizes)

    def carry(self, graph, output, name):
        self.inputs[graph][name.decode()] = self.made[graph][output.decode()]

    def run(self, graph):
        name = self.opened[graph]
        assert set(self.inputs[graph]) == set(self.manifest.graphs[name].inputs)
        self.made[graph] = self.backend.run(name, self.inputs[graph])
        return 0

    def shape(self, graph, output, shape):
        array = self.made[graph][output.decode()]
        for side, length in enumerate(array.shape):
            shape[side] = length
        return array.ndim

    def get(self, graph, output, values):
        array = np.ascontiguousarray(self.made[graph][output.decode()], np.float32)
        ctypes.memmove(values, array.ctypes.data, array.nbytes)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    made = tmp_path_factory.mktemp("cpp") / "replay.so"
    sources = [EXAMPLE / name for name in ("request.cpp", "replay.cpp", "picture.cpp")]
    own = Path(__file__).with_name("callback_graph.cpp")
    words = [compiler, *FLAGS, "-shared", "-fPIC", f"-I{EXAMPLE}", *sources, own, "-o", made]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def bundle(golden_bundle):
    return Bundle.open(golden_bundle)


@pytest.fixture(scope="module")
def backend(bundle):
    return backends.create("onnxruntime", bundle, threads=1)


@pytest.fixture(scope="module")
def pipe(bundle):
    return framert.load(bundle.path, threads=1)


@pytest.fixture
def replay(replay_of, bundle, backend):
    return lambda requests, graphs=None, damage=None: replay_of(
        bundle, requests, graphs or Graphs(bundle, backend), damage
    )


@pytest.fixture
def replay_of(library, tmp_path):
    """Compile requests and run them in C++; returns {(request, frame, "latents" or "pixels"): array}."""

    def run(bundle, requests, graphs, damage=None):
        file = compile_requests(bundle, requests).save(tmp_path / "request.safetensors")
        if damage is not None:
            damage(file)
        found = {}

        def take(request, frame, kind, sides, shape, values):
            sizes = tuple(shape[side] for side in range(sides))
            found[request, frame, ("latents", "pixels")[kind]] = np.ctypeslib.as_array(values, sizes).copy()

        count = library.replay_request(
            str(file).encode(), str(bundle.path / "manifest.json").encode(), ctypes.byref(graphs.table), TAKE(take)
        )
        return count, found

    return run


@pytest.mark.parametrize(
    "request_",
    [
        framert.Request(task="image_to_depth", images=[GOLDEN / "input_0.png"], size=(48, 32), steps=2, solver="heun"),
        framert.Request(
            task="image_to_multiview",
            images=[GOLDEN / "input_0.png"],
            cameras=framert.Cameras.orbit([0, 30], [20, 20], [2, 2]),
            size=(32, 32),
            steps=3,
            solver="dpmpp_2m",
        ),
        framert.Request(
            task="camera_pose",
            images=[GOLDEN / "input_0.png", GOLDEN / "input_1.png"],
            size=(32, 32),
            steps=2,
            guidance=1.0,
        ),
    ],
    ids=["depth", "multiview", "camera pose"],
)
def test_the_loop_in_cpp_equals_run(request_, replay, bundle, backend, pipe):
    graphs = Graphs(bundle, backend)
    count, found = replay([request_], graphs)
    expected = pipe.engine().submit(request_).result()
    assert count == len(expected.latents)
    latents = np.stack([found[key] for key in sorted(found) if key[2] == "latents"])
    np.testing.assert_array_equal(latents, expected.latents)
    pixels = [found[key] for key in sorted(found) if key[2] == "pixels"]
    assert len(pixels) == len(expected.pixels)
    for got, wanted in zip(pixels, expected.pixels, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert graphs.opened == ["text_encoder", "conditioner", "vae_encoder", "denoiser", "vae_decoder"]
    assert not graphs.held


def test_requests_that_leave_at_different_calls(replay, pipe):
    common = {"task": "text_to_image", "size": (32, 32)}
    requests = [
        framert.Request(prompt="a cube", steps=2, seed=1, **common),
        framert.Request(prompt="a sphere", steps=3, seed=2, solver="dpmpp_2m", **common),
    ]
    count, found = replay(requests)
    assert count == 2
    engine = pipe.engine()
    for number, request in enumerate(requests):
        expected = engine.submit(request).result()
        np.testing.assert_array_equal(found[number, 0, "latents"], expected.latents[0])
        np.testing.assert_array_equal(found[number, 0, "pixels"], expected.pixels[0])


def emulated_univg():
    spec = spec_from_file_location("emulated_univg", ROOT / "tests" / "emulated" / "univg.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NumpyGraphs(Graphs):
    """Graphs of a UniVG bundle in NumPy, whose step is a denoiser of the runtime's kind."""

    def run(self, graph):
        if self.opened[graph] != "denoiser":
            return super().run(graph)
        inputs, denoiser = self.inputs[graph], self.backend.denoiser()
        denoiser.text = {name: inputs[name] for name in denoiser.text}
        denoiser.modulation = inputs["modulation"]
        tables = {item.name: inputs[item.name] for item in fields(Tables) if item.name in inputs}
        denoiser.bind(Tables(**tables, frames=len(inputs["row"])), inputs["latents"], inputs["history"])
        denoiser.step(inputs["row"], inputs["update"])
        self.made[graph] = dict(zip(("next_latents", "next_history"), denoiser.state(), strict=True))
        return 0


@pytest.mark.parametrize(("task", "prompt"), [("edit", "make it blue"), ("identity", "a sphere")])
def test_another_family_in_cpp(replay_of, task, prompt, tmp_path):
    """Pictures that lie beside the noise, and pictures inside prompts."""
    univg = emulated_univg()
    bundle = univg.write_bundle(tmp_path / "tiny.bundle")
    backend = univg.NumpyBackend(bundle)
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    request = framert.Request(task=task, images=[picture], prompt=prompt, steps=2, size=(48, 32), seed=2)
    count, found = replay_of(bundle, [request], NumpyGraphs(bundle, backend))
    expected = framert.Pipeline(bundle, backend).engine().submit(request).result()
    assert count == 1
    np.testing.assert_array_equal(found[0, 0, "latents"], expected.latents[0])
    np.testing.assert_array_equal(found[0, 0, "pixels"], expected.pixels[0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.unlink(), "cannot read"),
        (lambda file: file.write_bytes(b""), "truncated"),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), "truncated"),
        (lambda file: file.write_bytes(file.read_bytes()[:100]), "truncated"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"version":"1"', b'"version":"2"')), "version 1"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"dtype"', b'"dtyqe"', 1)), "damaged header"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"places"', b'"placez"')), "lacks places"),
        (lambda file: file.write_bytes(re.sub(rb'("files":").', rb"\1z", file.read_bytes())), "another bundle"),
    ],
    ids=["missing", "empty", "end", "header", "version", "key", "name", "bundle"],
)
def test_files_that_do_not_fit_are_refused_in_a_line(replay, capfd, damage, says):
    request = framert.Request(task="text_to_image", prompt="a cube", size=(32, 32), steps=1)
    assert replay([request], damage=damage)[0] == -1
    (line,) = capfd.readouterr().err.splitlines()
    assert says in line


def test_nan_is_refused(replay, bundle, backend, capfd):
    class Broken(Graphs):
        def run(self, graph):
            super().run(graph)
            if self.opened[graph] == "denoiser":
                self.made[graph]["next_latents"][0, 0] = np.nan
            return 0

    request = framert.Request(task="text_to_image", prompt="a cube", size=(32, 32), steps=1)
    assert replay([request], Broken(bundle, backend))[0] == -1
    assert "NaN or infinity" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["out.png", "out.ppm"])
@pytest.mark.parametrize("size", [(5, 7), (200, 130)], ids=["small", "more than a block"])
def test_pictures_are_what_pillow_reads(library, tmp_path, name, size):
    pixels = np.random.default_rng(0).uniform(-0.1, 1.1, (*size, 3)).astype(np.float32)
    pointer = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    height, width = (ctypes.c_int64(side) for side in size)
    assert library.save_picture(str(tmp_path / name).encode(), height, width, pointer) == 0
    with Image.open(tmp_path / name) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(to_picture(pixels)))
    assert library.save_picture(str(tmp_path / "nowhere" / name).encode(), height, width, pointer) == -1


def test_cmake_builds_what_needs_no_tensorrt(tmp_path):
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is not installed")
    configured = subprocess.run(
        ["cmake", "-S", EXAMPLE, "-B", tmp_path, "-DTENSORRT_INCLUDE_DIR=OFF"], capture_output=True, text=True
    )
    assert configured.returncode == 0, configured.stderr
    assert "run_request is left out" in configured.stdout
    built = subprocess.run(["cmake", "--build", tmp_path], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "libframert_replay.a").is_file()
