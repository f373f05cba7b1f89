"""Half precision: which values change their type, and how far results move."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from framert.export.tensorrt.half import cast
from framert.export.weights import Weight, write_model
from framert.runtime.errors import ConfigError

FLOAT = onnx.TensorProto.FLOAT
RNG = np.random.default_rng(0)
WEIGHTS = {
    "first": RNG.standard_normal((16, 16)).astype(np.float32) / 4,
    "bias": RNG.standard_normal(16).astype(np.float32),
    "gain": RNG.standard_normal(16).astype(np.float32),
    "second": RNG.standard_normal((16, 16)).astype(np.float32) / 4,
}
# Two products, a norm and a residual; "bias" follows a product, "gain" a norm, "first" is read twice.
NODES = [
    ("MatMul", ["x", "first"], ["a"], {}),
    ("Add", ["a", "bias"], ["b"], {}),
    ("RMSNormalization", ["b", "ones"], ["c"], {"axis": -1}),
    ("Mul", ["c", "gain"], ["d"], {}),
    ("MatMul", ["d", "second"], ["e"], {}),
    ("Sigmoid", ["e"], ["f"], {}),
    ("Mul", ["e", "f"], ["g"], {}),
    ("Mul", ["g", "two"], ["h"], {}),
    ("Add", ["h", "x"], ["i"], {}),
    ("Reshape", ["i", "shape"], ["j"], {}),
    ("MatMul", ["j", "first"], ["k"], {}),
    ("Transpose", ["k"], ["y"], {}),
    ("Softmax", ["k"], ["z"], {}),
]
TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def graph(tmp_path: Path, precision: str | None) -> onnx.ModelProto:
    """The graph above, cast and with its weights written, or as it is."""
    nodes = [helper.make_node(kind, given, made, **more) for kind, given, made, more in NODES]
    ends = [[helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in which]
            for which in ([("x", ["n", 16])], [("y", [16, "n"]), ("z", ["n", 16])])]  # fmt: skip
    constants = {"ones": np.ones(16, np.float32), "two": np.float32(2), "shape": np.array([-1, 16])}
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants | WEIGHTS).items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *ends, tensors), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for name in WEIGHTS:
        value = model.graph.initializers.pop(name)
        value.const_value = None
    weights = {name: Weight(array.shape, lambda array=array: array) for name, array in WEIGHTS.items()}  # type: ignore[misc]
    made = weights if precision is None else cast(model, weights, precision)
    write_model(model, made, [], tmp_path, "g")
    proto = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_half_and_reductions_are_not(tmp_path: Path, precision: str) -> None:
    proto = onnx.shape_inference.infer_shapes(graph(tmp_path, precision), strict_mode=True)
    half = TYPES[precision].value
    kinds = {info.name: info.type.tensor_type.elem_type for info in proto.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for name in ("a", "b", "e", "f", "g", "h", "k"):
        assert kinds[name] == half, name
    for name in ("c", "d", "i", "j"):  # a norm, its weight, and a sum with an fp32 input
        assert kinds[name] == FLOAT, name
    stem = TYPES[precision].name.lower()
    assert kinds[f"first_{stem}"] == kinds[f"second_{stem}"] == kinds[f"bias_{stem}"] == half
    assert kinds["gain"] == FLOAT
    assert "first" not in kinds
    assert sum(tensor.name.startswith("first") for tensor in proto.graph.initializer) == 1
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)] == [FLOAT] * 3
    assert [value.name for value in proto.graph.output] == ["y", "z"]
    (bits,) = [tensor.raw_data for tensor in proto.graph.initializer if tensor.name == f"bias_{stem}"]
    dtype = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    assert bits == WEIGHTS["bias"].astype(dtype).tobytes()


def test_results_move_by_a_rounding(tmp_path: Path, open_session: Callable[[bytes], Any]) -> None:
    x = RNG.standard_normal((5, 16)).astype(np.float32)
    exact = open_session(graph(tmp_path, None).SerializeToString()).run(None, {"x": x})
    found = open_session(graph(tmp_path, "fp16").SerializeToString()).run(None, {"x": x})
    for low, high in zip(found, exact, strict=True):
        assert low.dtype == np.float32
        error = np.linalg.norm(low - high) / np.linalg.norm(high)
        assert 0 < error <= 4 * 2**-11


def test_quantized_weights_are_dequantized_to_half(tmp_path: Path) -> None:
    """The packed weight stays as it is, its scale and its product become half."""
    int4 = onnx.TensorProto.INT4
    nodes = [
        helper.make_node("DequantizeLinear", ["packed", "scale"], ["w"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, FLOAT, ["n", 8])] for name in ("x", "y")]
    packed = helper.make_tensor("packed", int4, [8, 8], np.arange(32, dtype=np.uint8).tobytes(), raw=True)
    scale = numpy_helper.from_array(np.full((2, 8), 0.5, np.float32), "scale")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *ends, [packed, scale]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    model.graph.initializers.pop("packed").const_value = None
    weights = {"packed": Weight((8, 8), lambda: np.arange(32, dtype=np.uint8), int4)}
    write_model(model, cast(model, weights, "fp16"), [], tmp_path, "g")
    made = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "g.onnx"), strict_mode=True)
    onnx.checker.check_model(made, full_check=True)
    kinds = {info.name: info.type.tensor_type.elem_type for info in made.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert (kinds["packed"], kinds["w"]) == (int4, onnx.TensorProto.FLOAT16)
    assert "scale" not in kinds
    (found,) = [tensor for tensor in made.graph.initializer if tensor.name == "packed"]
    assert found.raw_data == packed.raw_data


@pytest.mark.parametrize("outside", [False, True], ids=["constant", "weight"])
@pytest.mark.parametrize("precision", TYPES)
def test_a_masks_lowest_number_stays_a_number(precision: str, outside: bool, tmp_path: Path) -> None:
    """Rounded to nearest it would be infinite in bf16 as it is in fp16."""
    mask = np.array([0, 1, np.finfo(np.float32).min, np.finfo(np.float32).max] * 4, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("MatMul", ["b", "first"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, FLOAT, ["n", 16])] for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in (("first", WEIGHTS["first"]), ("mask", mask))]
    opset = [helper.make_opsetid("", 23)]
    proto = helper.make_model(helper.make_graph(nodes, "g", *ends, tensors), opset_imports=opset, ir_version=11)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    weights = {}
    if outside:
        model.graph.initializers.pop("mask").const_value = None
        weights["mask"] = Weight(mask.shape, lambda: mask)
    write_model(model, cast(model, weights, precision), [], tmp_path, "g")
    kept = {tensor.name: tensor for tensor in onnx.load(tmp_path / "g.onnx").graph.initializer}
    found = kept[f"mask_{TYPES[precision].name.lower()}"]
    assert found.data_type == TYPES[precision].value
    values = numpy_helper.to_array(found).astype(np.float32)
    assert values[:2].tolist() == [0, 1]
    most = float(ml_dtypes.finfo(TYPES[precision].numpy()).max)
    assert values[2:4].tolist() == [-most, most]


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision is 'fp8'; choose one of fp16, bf16"):
        graph(tmp_path, "fp8")
