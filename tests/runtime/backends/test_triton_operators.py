"""Every operator of backend "triton" against the ONNX standard's own evaluator."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from framert.runtime.backends.triton.operators import HOST_INPUTS, OPERATORS  # noqa: E402
from framert.runtime.errors import BackendError  # noqa: E402

RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def longs(*values):
    return np.array(values, np.int64)


X = floats(2, 3, 4)
POSITIVE = np.abs(X) + 0.1
MASK = X > 0
PICTURE = floats(2, 4, 6, 8)
NUMBER = np.array(2.0, np.float32)

# (operator, attributes, inputs; None is an optional input left out)
CASES = [
    ("Abs", {}, [X]),
    ("Add", {}, [X, floats(3, 1)]),
    ("And", {}, [MASK, ~MASK[:1]]),
    ("ArgMax", {"axis": -1, "keepdims": 0, "select_last_index": 0}, [longs(3, 5, 1, 5).reshape(1, 4)]),
    ("ArgMax", {}, [X]),
    ("Cast", {"to": 7}, [X * 5]),
    ("Cast", {"to": 1}, [longs(3, -4)]),
    ("Cast", {"to": 9}, [longs(3, 0)]),
    ("Concat", {"axis": -1}, [X, X[..., :2]]),
    ("Constant", {"value": longs(1, 2, 3)}, []),
    ("Conv", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [PICTURE, floats(5, 4, 3, 3), floats(5)]),
    ("Conv", {"pads": [0, 0, 1, 1], "strides": [2, 2]}, [PICTURE, floats(5, 4, 3, 3)]),
    ("Conv", {"group": 2, "dilations": [2, 1]}, [PICTURE, floats(4, 2, 2, 2), floats(4)]),
    ("Cos", {}, [X]),
    ("Div", {}, [X, POSITIVE]),
    ("Div", {}, [longs(7, -7), longs(2, 2)]),
    ("Equal", {}, [longs(1, 2), longs(1, 3)]),
    ("Erf", {}, [X]),
    ("Exp", {}, [X]),
    ("Expand", {}, [floats(3, 1), longs(2, 1, 4)]),
    ("Expand", {}, [floats(2, 3), longs(1)]),
    ("Gather", {"axis": 1}, [X, np.array([[0, -1], [2, 0]], np.int64)]),
    ("Gather", {"axis": 0}, [X, np.array(1, np.int64)]),
    ("GatherND", {"batch_dims": 0}, [X, np.array([[0, 2], [1, -1]], np.int64)]),
    ("GatherND", {}, [X, np.array([[1]], np.int64)]),
    ("Gelu", {}, [X]),
    ("Gelu", {"approximate": "tanh"}, [X]),
    ("Greater", {}, [X, NUMBER]),
    ("GreaterOrEqual", {}, [longs(1, 2, 3), np.array(2, np.int64)]),
    ("GroupNormalization", {"num_groups": 2, "epsilon": 1e-3}, [PICTURE, floats(4), floats(4)]),
    ("GroupNormalization", {"num_groups": 4}, [floats(1, 4, 5), floats(4), floats(4)]),
    ("Identity", {}, [X]),
    ("InstanceNormalization", {"epsilon": 1e-3}, [PICTURE, floats(4), floats(4)]),
    ("LayerNormalization", {"axis": -1, "epsilon": 1e-3}, [X, floats(4), floats(4)]),
    ("LayerNormalization", {}, [X, floats(4)]),
    ("Less", {}, [X, NUMBER]),
    ("LessOrEqual", {}, [longs(1, 2), longs(1, 1)]),
    ("Log", {}, [POSITIVE]),
    ("MatMul", {}, [X, floats(2, 4, 5)]),
    ("MatMul", {}, [floats(3, 4), floats(4)]),
    ("Max", {}, [X, floats(1, 4), NUMBER]),
    ("Min", {}, [X, NUMBER]),
    ("Mul", {}, [X, NUMBER]),
    ("Neg", {}, [X]),
    ("Not", {}, [MASK]),
    ("Or", {}, [MASK, ~MASK[:1]]),
    ("Pad", {"mode": "constant"}, [X[0], longs(0, 1, 2, 3)]),
    ("Pad", {}, [X, longs(1, 2), np.array(-7, np.float32), longs(-2)]),
    ("Pow", {}, [POSITIVE, np.array(1.5, np.float32)]),
    ("RMSNormalization", {"epsilon": 1e-3}, [X, floats(4)]),
    ("Range", {}, [np.array(2, np.int64), np.array(9, np.int64), np.array(3, np.int64)]),
    ("Reciprocal", {}, [POSITIVE]),
    ("ReduceMean", {"keepdims": 0}, [X, longs(0, -1)]),
    ("ReduceMean", {}, [X]),
    ("ReduceMean", {"noop_with_empty_axes": 1}, [X]),
    ("ReduceSum", {}, [X, longs(1)]),
    ("Relu", {}, [X]),
    ("Reshape", {}, [X, longs(0, -1)]),
    ("Reshape", {"allowzero": 1}, [floats(0, 3), longs(3, 0)]),
    (
        "Resize",
        {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
        [PICTURE, None, np.array([1, 1, 2, 3], np.float32)],
    ),
    (
        "Resize",
        {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
        [PICTURE, None, None, longs(2, 4, 12, 12)],
    ),
    ("ScatterND", {}, [X, np.array([[0, 2], [1, -1]], np.int64), floats(2, 4)]),
    ("ScatterND", {"reduction": "none"}, [X, np.zeros((0, 1), np.int64), floats(0, 3, 4)]),
    ("Shape", {}, [X]),
    ("Shape", {"start": -2, "end": 2}, [X]),
    ("Sigmoid", {}, [X]),
    ("Sin", {}, [X]),
    ("Slice", {}, [X, longs(0, 1), longs(2, 9), longs(2, -2), longs(1, 2)]),
    ("Slice", {}, [X, longs(1), longs(-1), longs(2)]),
    ("Softmax", {"axis": 1}, [X]),
    ("Split", {"axis": 2, "num_outputs": 2}, [X]),
    ("Split", {"axis": -1}, [X, longs(1, 3)]),
    ("Sqrt", {}, [POSITIVE]),
    ("Squeeze", {}, [floats(1, 3, 1)]),
    ("Squeeze", {}, [floats(1, 3, 1), longs(-1)]),
    ("Sub", {}, [X, floats(4)]),
    ("Tanh", {}, [X]),
    ("Transpose", {"perm": [2, 0, 1]}, [X]),
    ("Transpose", {}, [X]),
    ("Unsqueeze", {}, [X, longs(-1, 0)]),
    ("Where", {}, [MASK, X, NUMBER]),
]


def test_every_operator_has_a_case():
    assert {op for op, *_ in CASES} == set(OPERATORS)
    assert set(HOST_INPUTS) <= set(OPERATORS)


@pytest.mark.parametrize(("op", "attributes", "inputs"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)])
def test_operator_matches_the_standard(op, attributes, inputs):
    from onnx.reference import ReferenceEvaluator

    names = [f"input{place}" if array is not None else "" for place, array in enumerate(inputs)]
    outputs = ["output0", "output1"] if op == "Split" else ["output0"]
    stated = {
        key: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in attributes.items()
    }
    node = onnx.helper.make_node(op, names, outputs, **stated)
    given = dict(zip(names, inputs, strict=True))
    given.pop("", None)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
         for key, array in given.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    expected = ReferenceEvaluator(model).run(None, given)

    ours = attributes | {
        key: torch.from_numpy(value) for key, value in attributes.items() if isinstance(value, np.ndarray)
    }
    tensors = [None if array is None else torch.from_numpy(np.array(array)) for array in inputs]
    made = OPERATORS[op](ours, *tensors)
    for actual, exact in zip([made] if isinstance(made, torch.Tensor) else made, expected, strict=True):
        assert actual.shape == np.shape(exact)
        assert actual.numpy().dtype == np.asarray(exact).dtype
        np.testing.assert_allclose(actual.numpy(), exact, rtol=2e-6, atol=2e-6)


def test_what_an_operator_lacks_is_said():
    with pytest.raises(BackendError, match="only Resize to the nearest"):
        OPERATORS["Resize"]({"mode": "linear"}, torch.zeros(1, 1, 2, 2), None, torch.ones(4))
    zero = torch.tensor([0])
    with pytest.raises(BackendError, match="step of -1"):
        OPERATORS["Slice"]({}, torch.zeros(2), zero, zero, zero, torch.tensor([-1]))
    with pytest.raises(BackendError, match="no Pad with mode 'reflect'"):
        OPERATORS["Pad"]({"mode": "reflect"}, torch.zeros(2), torch.tensor([1, 1]))
    with pytest.raises(BackendError, match="no GatherND with 1 batch axes"):
        OPERATORS["GatherND"]({"batch_dims": 1}, torch.zeros(2, 2), zero)
    with pytest.raises(BackendError, match="takes the last of equals"):
        OPERATORS["ArgMax"]({"select_last_index": 1}, torch.zeros(2))
    with pytest.raises(BackendError, match="no ScatterND with reduction 'add'"):
        OPERATORS["ScatterND"]({"reduction": "add"}, torch.zeros(2), zero[None], torch.ones(1))
    with pytest.raises(BackendError, match="no Conv on 3 axes"):
        OPERATORS["Conv"]({}, torch.zeros(1, 1, 2), torch.zeros(1, 1, 1))


@pytest.mark.parametrize("op", ["RMSNormalization", "LayerNormalization", "GroupNormalization", "Softmax"])
def test_statistics_are_taken_in_fp32(op):
    """In bf16 the result is the fp32 result rounded once, which a norm in bf16 steps is not."""
    x = (torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0)) * 3 + 100).bfloat16()
    attributes = {"num_groups": 4, "axis": -1}
    width = {"GroupNormalization": 64}.get(op, 32)
    weights = [] if op == "Softmax" else [torch.ones(width, dtype=torch.bfloat16)]
    weights += [torch.zeros(width, dtype=torch.bfloat16)] if op == "GroupNormalization" else []
    low = OPERATORS[op](attributes, x, *weights)
    exact = OPERATORS[op](attributes, x.float(), *(weight.float() for weight in weights))
    assert (low.float() - exact).abs().max() <= exact.abs().max() * torch.finfo(torch.bfloat16).eps
