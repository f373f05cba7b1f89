"""The graphs around the denoiser, run operator by operator in torch, against ONNX Runtime on the golden bundle."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from torch.utils import _pytree as pytree  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from framert.runtime.backends.triton.executor import Executor  # noqa: E402
from framert.runtime.backends.triton.graph_file import GraphFile  # noqa: E402
from framert.runtime.errors import BackendError  # noqa: E402

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
FEEDS = {
    "text_encoder": {"input_ids": RANDOM.integers(1, 150, (1, 11))},
    "vae_encoder": {"pixels": RANDOM.standard_normal((1, 3, 64, 96)).astype(np.float32)},
    "conditioner": {
        "hidden_states": RANDOM.standard_normal((7, 64)).astype(np.float32),
        "noise_level": np.array([1000, 300.5, 12], np.float32),
    },
    "vae_decoder": {"latents": RANDOM.standard_normal((1, 16, 8, 12)).astype(np.float32)},
}


def run(path, feeds, dtype):
    with torch.inference_mode():
        made = Executor(GraphFile(path), CPU, dtype).run({name: torch.from_numpy(x) for name, x in feeds.items()})
    return {name: tensor.float().numpy() for name, tensor in made.items()}


def relative(actual, exact):
    return np.linalg.norm(actual.astype(np.float64) - exact) / np.linalg.norm(exact)


@pytest.fixture(scope="module")
def expected(golden_bundle):
    made = {}
    for graph, feeds in FEEDS.items():
        session = onnxruntime.InferenceSession(golden_bundle / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        made[graph] = dict(zip(names, session.run(names, feeds), strict=True))
    return made


@pytest.mark.parametrize("graph", FEEDS)
def test_graph_matches_onnxruntime(graph, golden_bundle, expected):
    made = run(golden_bundle / f"{graph}.onnx", FEEDS[graph], torch.float32)
    assert set(made) == set(expected[graph])
    for name, exact in expected[graph].items():
        assert made[name].shape == exact.shape
        assert relative(made[name], exact) < 5e-6


@pytest.mark.parametrize("graph", ["text_encoder", "vae_encoder", "vae_decoder"])
def test_bf16_stays_near(graph, golden_bundle, expected):
    """A rounding of 2^-9 per operator through graphs of a dozen layers: about a percent, as PyTorch's own bf16."""
    for name, actual in run(golden_bundle / f"{graph}.onnx", FEEDS[graph], torch.bfloat16).items():
        assert 1e-4 < relative(actual, expected[graph][name]) < 0.03


def test_group_norms_are_put_together_and_nothing_else_changes(golden_bundle):
    from framert.runtime.backends.triton.group_norms import merged

    file = GraphFile(golden_bundle / "vae_decoder.onnx")
    ops = [node.op for node in merged(file)]
    norms = sum(node.op == "InstanceNormalization" for node in file.nodes)
    assert norms > 10
    assert ops.count("GroupNormalization") == norms
    assert "InstanceNormalization" not in ops
    for other in ("Conv", "MatMul", "Softmax", "Resize", "Sigmoid"):
        assert ops.count(other) == sum(node.op == other for node in file.nodes)


class OneDevice(TorchDispatchMode):
    """Fails where an operator reads tensors of two devices: CUDA would, and the meta device does not always."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()]
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        assert copies or len({x.device.type for x in tensors}) <= 1, f"{func} reads from two devices"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("graph", FEEDS)
def test_shapes_stay_on_the_host_and_values_on_the_device(graph, golden_bundle, expected):
    """On a device whose values cannot be read at all, so that reading one on the host is an error."""
    executor = Executor(GraphFile(golden_bundle / f"{graph}.onnx"), torch.device("meta"), torch.bfloat16)
    with torch.inference_mode(), OneDevice():
        made = executor.run({name: torch.from_numpy(x) for name, x in FEEDS[graph].items()})
    for name, exact in expected[graph].items():
        assert made[name].shape == exact.shape
        assert made[name].device.type == "meta"


def model(path, nodes, initializers=(), outputs=("y",)):
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("x", floats, ["n", 4])],
        [onnx.helper.make_tensor_value_info(name, floats, None) for name in outputs],
        list(initializers),
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]), path)
    return path


def test_operators_that_are_missing_are_named(tmp_path):
    nodes = [onnx.helper.make_node("Selu", ["x"], ["a"]), onnx.helper.make_node("Mish", ["a"], ["y"])]
    with pytest.raises(BackendError, match="Mish, Selu, which backend 'triton' does not run"):
        Executor(GraphFile(model(tmp_path / "small.onnx", nodes)), CPU, torch.float32)


def test_a_failing_operator_is_named(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((5, 2), np.float32), "w")
    path = model(tmp_path / "small.onnx", [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    with pytest.raises(BackendError, match="MatMul that makes y failed"):
        run(path, {"x": np.ones((1, 4), np.float32)}, torch.float32)


@pytest.mark.parametrize("path", ["missing.onnx", "garbage.onnx"])
def test_unreadable_files_are_refused(path, tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BackendError, match="is no ONNX file"):
        GraphFile(tmp_path / path)


def test_weights_of_a_data_file_are_mapped(tmp_path):
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    weight = onnx.numpy_helper.from_array(values, "w")
    path = model(tmp_path / "small.onnx", [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    loaded = onnx.load(path)
    onnx.save(loaded, path, save_as_external_data=True, location="small.onnx.data", size_threshold=0)
    file = GraphFile(path)
    torch.testing.assert_close(file.tensor("w"), torch.from_numpy(values))
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(run(path, {"x": x}, torch.float32)["y"], values)
    with pytest.raises(BackendError, match="has no weight v"):
        file.tensor("v")


def test_masks_of_fp32_stay_finite_in_bf16(tmp_path):
    """-3.4e38 becomes minus infinity in bf16, and infinity minus infinity is NaN."""
    mask = onnx.numpy_helper.from_array(np.full((1, 4), np.finfo(np.float32).min, np.float32), "mask")
    nodes = [
        onnx.helper.make_node("Sub", ["mask", "mask"], ["zero"]),
        onnx.helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    made = run(model(tmp_path / "small.onnx", nodes, [mask]), {"x": np.ones((1, 4), np.float32)}, torch.bfloat16)
    np.testing.assert_array_equal(made["y"], np.ones((1, 4), np.float32))
