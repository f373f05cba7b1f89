"""The OpenVINO backend: golden velocities, packed equals alone, fp32 state under bf16, no telemetry, clear refusals."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("openvino")
torch = pytest.importorskip("torch")

import framert  # noqa: E402
from framert.kernels.frame_attention import reference  # noqa: E402
from framert.runtime import tables as tables_module  # noqa: E402
from framert.runtime.backends import openvino_attention, openvino_rotary, openvino_runs  # noqa: E402
from framert.runtime.backends.openvino import OpenVinoBackend, import_openvino  # noqa: E402
from framert.runtime.bundle import Bundle  # noqa: E402
from framert.runtime.cpu import cpu_features  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "golden"
HALF = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(
        not {"avx512_bf16", "amx_bf16", "bf16"} & cpu_features(), reason="needs a CPU with bfloat16"
    ),
)
REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", steps=3, guidance=4.0, size=(32, 32), seed=1),
    framert.Request(task="text_to_image", prompt="a small blue sphere", steps=2, guidance=1.0, size=(48, 16), seed=2),
    framert.Request(
        task="image_to_depth", images=[GOLDEN / "input_0.png"], prompt="", steps=4, guidance=3.0, size=(32, 32), seed=3
    ),
    # as large as the first one, so that they share a run, in which its text is the longest
    framert.Request(
        task="text_to_image", prompt="a large green cone on sand behind it " * 3, steps=3, size=(32, 32), seed=4
    ),
]


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, backend="openvino", threads=2)


@pytest.fixture(scope="module")
def half(golden_bundle):
    return framert.load(golden_bundle, backend="openvino", threads=2, precision="bf16")


def relative(got, exact):
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def velocity(pipe, name):
    vectors = np.load(GOLDEN / f"{name}.npz")
    got = pipe.velocity(vectors["samples"], vectors["timesteps"], vectors["text"], vectors["text_mask"])
    return relative(got, vectors["velocity"])


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("transformer_*.npz")))
def test_golden_velocity(pipe, name):
    assert velocity(pipe, name) < 1e-5


@pytest.mark.parametrize("precision", [HALF])
def test_bf16_is_bf16_and_no_worse_than_its_mantissa(half, precision):
    # bfloat16 keeps 8 bits: each of the model's few layers rounds to 2^-9 several times
    assert 1e-4 < velocity(half, "transformer_two_frames_mixed_noise") < 16 * 2**-8


@pytest.mark.parametrize("precision", ["fp32", HALF])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 0, 1), (0, 3), (3, 0, 0)], ids=str)
def test_packed_equals_alone_bit_for_bit(request, precision, order):
    pipe = request.getfixturevalue("half" if precision == "bf16" else "pipe")
    alone = {index: pipe.engine().submit(REQUESTS[index]).result() for index in set(order)}
    engine = pipe.engine()
    tickets = [engine.submit(REQUESTS[index]) for index in order]
    while engine.step():
        pass
    for index, ticket in zip(order, tickets, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, alone[index].latents)


@pytest.mark.parametrize("precision", ["fp32", HALF])
def test_the_solver_computes_in_fp32(request, precision):
    """Latents and history are no multiples of bfloat16's steps, and come back as the update says, bit for bit."""
    pipe = request.getfixturevalue("half" if precision == "bf16" else "pipe")
    pipe.velocity(
        *(np.load(GOLDEN / "transformer_one_frame.npz")[key] for key in ("samples", "timesteps", "text", "text_mask"))
    )
    denoiser = pipe._backend.denoiser()
    model = pipe.manifest.model
    generator = np.random.default_rng(0)
    denoiser.reserve(text=3, rows=1)
    shape = (model.depth, 3, model.kv_heads, model.head_dim)
    denoiser.write_text(0, *(generator.standard_normal(shape).astype(np.float32) for _ in range(2)))
    denoiser.write_modulation(0, np.ones((1, 4 * model.depth + 1, model.hidden_size), np.float32))
    branch = tables_module.BranchRows(0, 3, 0, 1.0)
    member = SimpleNamespace(frames=1, height=2, width=2, branches=(branch,))
    tables = tables_module.build([member], guidance_branches=pipe.manifest.guidance_branches)
    latents, history = (generator.standard_normal((4, model.token_width)).astype(np.float32) for _ in range(2))
    denoiser.bind(tables, latents, history)
    a, b, c, d, e, f = row = np.array([1.1, -0.3, 0.7, 0.2, 0.9, -1.3], np.float32)
    denoiser.step(np.zeros(1, np.int32), np.tile(row, (4, 1)))
    v = denoiser.velocity()
    moved, kept = denoiser.state()
    exact = [np.float64(x) for x in (latents, v, history)]
    # six roundings of fp32 at most; one of bfloat16 alone is 2^-9
    assert relative(moved, a * exact[0] + b * exact[1] + c * exact[2]) < 4 * 2**-24
    assert relative(kept, d * exact[0] + e * exact[1] + f * exact[2]) < 4 * 2**-24


class Node:
    """What a conversion sees of an ONNX node."""

    def __init__(self, inputs, **attributes):
        self.inputs, self.attributes = inputs, attributes

    def get_input_size(self):
        return len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]

    def get_attribute(self, name, default):
        return self.attributes.get(name, default)


def ranges(lengths, begin=0):
    begins = begin + np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return np.stack((begins, lengths), axis=1).astype(np.int32)


def run_converted(convert, arrays, **attributes):
    """Return what a converted node computes in fp32."""
    openvino = import_openvino()
    from openvino import opset13 as op

    shapes = [[-1, *array.shape[1:]] if array.ndim > 1 else list(array.shape) for array in arrays]
    parameters = [op.parameter(shape, array.dtype) for shape, array in zip(shapes, arrays, strict=True)]
    model = openvino.Model(convert(Node([one.output(0) for one in parameters], **attributes)), parameters, "node")
    config = {"INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE"}
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    for index, array in enumerate(arrays):
        request.set_input_tensor(index, openvino.Tensor(array))
    request.infer()
    return request.get_output_tensor(0).data.copy()


def check_attention(arrays, options, per_head=1):
    tensors = [torch.from_numpy(array) for array in arrays]
    doubles = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    exact = reference.frame_attention(*doubles, **options).numpy()
    plain = reference.frame_attention(*tensors, **options).numpy()
    budget = 2 * np.abs(plain - exact).max() + np.finfo(np.float32).eps * np.abs(exact).max()
    got = run_converted(partial(openvino_attention._convert, per_head=per_head), arrays, **options)
    assert np.abs(got - exact).max() <= budget


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 1, 6), (8, 2, 24), (6, 3, 18)])
@pytest.mark.parametrize(
    ("lengths", "texts"), [((7,), (3,)), ((5, 5, 5), (2, 9, 1)), ((1, 1, 1), (4, 0, 6)), ((8, 8), (0, 0))], ids=str
)
def test_attention_matches_the_reference(lengths, texts, heads, kv_heads, width, softcap):
    generator = np.random.default_rng(0)
    tokens, capacity = sum(lengths), sum(texts) + 3
    draw = lambda *shape: generator.standard_normal(shape).astype(np.float32)  # noqa: E731
    arrays = [
        4 * draw(tokens, heads, width), 4 * draw(tokens, kv_heads, width), draw(tokens, kv_heads, width),
        ranges(lengths), ranges(lengths), draw(capacity, kv_heads, width), draw(capacity, kv_heads, width),
        ranges(texts, 1), draw(heads),
    ]  # fmt: skip
    check_attention(arrays, {"softcap": softcap, "scale": width**-0.5})


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(
    ("lengths", "keys"),
    [((7,), (7,)), ((5, 5), (5, 5)), ((1, 17, 3), (1, 17, 3)), ((4, 4, 1), (4, 9, 2)), ((2, 0, 3), (2, 0, 3))],
    ids=str,
)
def test_attention_without_a_text_apart_takes_any_lengths(lengths, keys, heads, kv_heads, softcap):
    generator = np.random.default_rng(0)
    draw = lambda count, heads: generator.standard_normal((count, heads, 8)).astype(np.float32)  # noqa: E731
    arrays = [4 * draw(sum(lengths), heads), 4 * draw(sum(keys), kv_heads), draw(sum(keys), kv_heads)]
    check_attention([*arrays, ranges(lengths), ranges(keys)], {"softcap": softcap, "scale": 8**-0.5})


@pytest.mark.parametrize("texts", [(), (2, 4)], ids=["text within", "text apart"])
@pytest.mark.parametrize(("heads", "kv_heads", "parts"), [(6, 6, 6), (6, 6, 3), (6, 6, 1), (8, 4, 2)])
def test_heads_in_parts_match_the_reference(heads, kv_heads, parts, texts):
    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.standard_normal(shape).astype(np.float32)  # noqa: E731
    arrays = [draw(14, heads, 8), draw(14, kv_heads, 8), draw(14, kv_heads, 8), ranges((7, 7)), ranges((7, 7))]
    if texts:
        arrays += [draw(6, kv_heads, 8), draw(6, kv_heads, 8), ranges(texts), draw(heads)]
    per_head = parts * openvino_attention.LOGITS // heads
    check_attention(arrays, {"softcap": 0.0, "scale": 8**-0.5}, per_head)


def test_what_is_not_a_sequence_s_own_has_no_weight():
    """Bit for bit: whatever the others hold, and however much longer they are."""
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal((21, 2, 8)).astype(np.float32) for _ in range(3)]
    options = {"softcap": 0.0, "scale": 1.0}
    convert = partial(openvino_attention._convert, per_head=1)
    first = run_converted(convert, [*arrays, ranges((4, 17)), ranges((4, 17))], **options)
    for array in arrays:
        array[4:] = 1e3 * generator.standard_normal(array[4:].shape)
    again = run_converted(convert, [*arrays, ranges((4, 17)), ranges((4, 17))], **options)
    np.testing.assert_array_equal(again[:4], first[:4])
    assert not np.array_equal(again[4:], first[4:])


@pytest.mark.parametrize(("heads", "width"), [(1, 6), (3, 8)])
def test_rotation_matches_the_formula(heads, width):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, 5, heads * width)).astype(np.float32)
    angle = generator.standard_normal((1, 5, width // 2))
    tables = [function(angle).astype(np.float32) for function in (np.cos, np.sin)]
    got = run_converted(openvino_rotary._convert, [x, *tables], num_heads=heads, interleaved=1)
    pairs = x.astype(np.float64).reshape(1, 5, heads, width // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, :, None]
    exact = np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape)
    # the tables are rounded, two products and their sum
    assert np.abs(got - exact).max() <= 4 * 2**-24 * np.abs(x).max() * 2


def member(frames, side, text, *, branches=2, weight=0.5, picture=False):
    rows = tuple(
        tables_module.BranchRows(7 * index, text + index, frames * index, weight, picture=picture and not index)
        for index in range(branches)
    )
    shown = np.full((frames * side * side, 3), text, np.float32)
    return SimpleNamespace(frames=frames, height=side, width=side, branches=rows, conditions=shown)


CARRIED = tables_module.Layout(blank=np.ones(3, np.float32), carries_text=True, centred_in=16)


def check_runs(made, expected, layout=tables_module.DEFAULT_LAYOUT):
    packed = tables_module.build(made, guidance_branches=4, layout=layout)
    runs = openvino_runs.split(packed)
    assert len(runs) == len(expected)
    slots = frames = 0
    for run, indices in zip(runs, expected, strict=True):
        alone = tables_module.build([made[index] for index in indices], guidance_branches=4, layout=layout)
        assert run.tables.keys() == alone.arrays().keys()
        for name, array in alone.arrays().items():
            np.testing.assert_array_equal(run.tables[name], array, err_msg=name)
            assert run.tables[name].dtype == array.dtype
            assert run.tables[name].flags.c_contiguous
        assert (run.slots, run.frames) == (
            slice(slots, slots + alone.slots), slice(frames, frames + alone.frames)
        )  # fmt: skip
        slots, frames = slots + alone.slots, frames + alone.frames
    assert (slots, frames) == (packed.slots, packed.frames)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(1, 4, 3)], [(0,)]),
        ([(1, 4, 3), (1, 4, 9), (1, 2, 3)], [(0, 1), (2,)]),
        ([(1, 4, 3), (1, 2, 3), (1, 4, 3)], [(0,), (1,), (2,)]),
        ([(4, 2, 1), (1, 4, 2), (1, 1, 0)], [(0, 1), (2,)]),
    ],
    ids=["one", "equal neighbours", "apart", "equal in tokens"],
)
def test_a_run_has_the_tables_that_its_members_have_alone(members, expected):
    check_runs([member(*shape, branches=1 + index % 3) for index, shape in enumerate(members)], expected)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(4, 3, 2, True)], [(0,)]),
        ([(4, 3, 2, True), (4, 3, 2, False), (4, 3, 2, True)], [(0, 1, 2)]),
        # a request's longest text counts, whichever branch has it
        ([(4, 3, 2, True), (4, 4, 1, True), (4, 3, 3, True), (4, 9, 2, False)], [(0, 1), (2,), (3,)]),
        ([(2, 0, 1, False), (4, 0, 1, True), (2, 0, 1, True), (2, 0, 1, True)], [(0,), (1,), (2, 3)]),
    ],
    ids=["one", "equal neighbours", "texts", "empty texts"],
)
def test_a_run_that_carries_its_text_has_the_tables_that_its_members_have_alone(members, expected):
    made = [member(1, side, text, branches=count, picture=shown) for side, text, count, shown in members]
    check_runs(made, expected, CARRIED)


def test_padding_is_no_run():
    packed = tables_module.build([member(1, 2, 3)], guidance_branches=4, tokens=30)
    (run,) = openvino_runs.split(packed)
    assert len(run.tables["source"]) == 8


def test_nothing_is_reported_to_anybody(golden_bundle):
    """openvino sends an event when it is imported; here no connection may even be tried."""
    code = f"""
import socket, sys

def refuse(*arguments, **keywords):
    print("tried", arguments)

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import framert
pipe = framert.load({str(golden_bundle)!r}, backend="openvino")
pipe.run("text_to_image", prompt="a", steps=1, size=(16, 16))
import threading
print(sorted(name for name in sys.modules if "telemetry" in name and "openvino_telemetry" in name))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@pytest.mark.skipif(len(CORES) < 2, reason="needs a system that says where threads may run, and two cores")
def test_a_thread_that_computes_may_run_on_every_core(golden_bundle):
    """A pinned thread is pinned to the first core, in every process: two processes of one thread would share it."""
    pipe, own, seen = framert.load(golden_bundle, backend="openvino", threads=1), [], []
    pipe.run("text_to_image", prompt="a", steps=1, size=(32, 32))  # loading a graph is OpenVINO's own affair

    def compute():
        own.append(threading.get_native_id())
        pipe.run("text_to_image", prompt="a", steps=50, size=(32, 32))
        own.clear()

    worker = threading.Thread(target=compute)
    worker.start()
    while worker.is_alive():
        seen += [frozenset(os.sched_getaffinity(thread)) for thread in own]
    assert len(seen) > 10
    assert set(seen) == {frozenset(CORES)}


def test_a_module_that_is_there_already_stays(monkeypatch):
    present = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", present)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is present


def test_a_failed_step_changes_nothing(pipe):
    entry = pipe.engine()
    entry.submit(REQUESTS[0])
    entry.step()
    denoiser = entry._pack._denoiser
    before = denoiser.state()
    with pytest.raises(BackendError, match="denoiser"):
        denoiser.step(np.zeros((1, 1, 1), np.int32), np.zeros((1, 1, 1, 1), np.float32))
    for was, now in zip(before, denoiser.state(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_refusals(golden_bundle, monkeypatch):
    bundle = Bundle.open(golden_bundle, check_files=False)
    with pytest.raises(BackendError, match="fp32 or bf16, not 'fp16'"):
        OpenVinoBackend(bundle, threads=None, precision="fp16")
    with pytest.raises(ConfigError, match="threads is 0"):
        OpenVinoBackend(bundle, threads=0)
    other = replace(bundle, manifest=replace(bundle.manifest, target={"kind": "tensorrt"}))
    with pytest.raises(BackendError, match="built for 'tensorrt'"):
        OpenVinoBackend(other, threads=None)
    graphs = bundle.manifest.graphs | {"denoiser": replace(bundle.manifest.graphs["denoiser"], precision="float16")}
    with pytest.raises(BackendError, match=r"denoiser in float16.*precision 'bf16'"):
        OpenVinoBackend(replace(bundle, manifest=replace(bundle.manifest, graphs=graphs)), threads=None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'framert\[openvino\]'"):
        OpenVinoBackend(bundle, threads=None)


def test_bf16_needs_a_cpu_that_has_it(golden_bundle, monkeypatch):
    openvino = import_openvino()
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(BackendError, match="no bfloat16"):
        OpenVinoBackend(Bundle.open(golden_bundle, check_files=False), threads=None, precision="bf16")
