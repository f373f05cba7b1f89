"""Quantized products as bundles hold them, in TensorRT-RTX: which targets build them, and that weights stay small."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from framert.export.tensorrt.api import load
from framert.export.tensorrt.targets import PRECISIONS
from framert.runtime.errors import BackendError

pytestmark = pytest.mark.usefixtures("rtx")
SIZE, BLOCK = 1024, 128
TYPES = {"int8": T.INT8, "fp8": T.FLOAT8E4M3FN, "int4": T.INT4}
LARGEST = {"int8": 127.0, "fp8": 448.0}
# Bytes that the weight of one product may add to an engine, code aside.
WEIGHT = {"int8": SIZE * SIZE, "fp8": SIZE * SIZE, "int4": SIZE * SIZE // 2 + 2 * SIZE * SIZE // BLOCK}
CODE = 400_000


def product(kind: str) -> onnx.ModelProto:
    """One product in fp16: per-token activation scales for 8 bits, blocks of 128 in the weight alone for 4."""
    rng = np.random.default_rng(0)
    half = np.float16
    dtype = TYPES[kind]
    if kind == "int4":
        packed = helper.make_tensor("w", dtype, [SIZE, SIZE], rng.bytes(SIZE * SIZE // 2), raw=True)
        scale = numpy_helper.from_array(np.full((SIZE // BLOCK, SIZE), 0.01, half), "w_scale")
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_half"], axis=0, block_size=BLOCK),
            helper.make_node("MatMul", ["x", "w_half"], ["y"]),
        ]
        constants = [packed, scale]
    else:
        values = rng.integers(0, 0x60, SIZE * SIZE, dtype=np.uint8)  # no NaN among them as fp8
        packed = helper.make_tensor("w", dtype, [SIZE, SIZE], values.tobytes(), raw=True)
        constants = [
            packed,
            numpy_helper.from_array(np.full(SIZE, 0.01, half), "w_scale"),
            numpy_helper.from_array(np.array(1 / LARGEST[kind], half), "one"),
            helper.make_tensor("zero", dtype, [], b"\0", raw=True),
            helper.make_tensor("zeros", dtype, [SIZE], bytes(SIZE), raw=True),
            numpy_helper.from_array(np.array([-1]), "last"),
        ]
        nodes = [
            helper.make_node("Abs", ["x"], ["size"]),
            helper.make_node("ReduceMax", ["size", "last"], ["amax"], keepdims=1),
            helper.make_node("Div", ["x", "amax"], ["unit"]),
            helper.make_node("QuantizeLinear", ["unit", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["dq"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "zeros"], ["w_half"], axis=1),
            helper.make_node("MatMul", ["dq", "w_half"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "amax"], ["y"]),
        ]
    ends = [[helper.make_tensor_value_info(name, T.FLOAT16, ["n", SIZE])] for name in ("x", "y")]
    return helper.make_model(
        helper.make_graph(nodes, kind, *ends, constants), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    )


def size_of(kind: str, target: str, folder: Path) -> int:
    """Build the product for a target and return the engine's size."""
    api: Any = load("tensorrt-rtx")
    builder = api.builder()
    network = api.network(builder)
    parser = api.parse(network, folder / f"{kind}.onnx", product(kind).SerializeToString())
    config = api.config(builder, [target], weight_streaming=False, compatible="none")
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, SIZE), (64, SIZE), (256, SIZE))
    config.add_optimization_profile(profile)
    api.build(builder, network, config, folder / f"{kind}.engine")
    del parser
    return (folder / f"{kind}.engine").stat().st_size


@pytest.mark.parametrize("target", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("kind", TYPES)
def test_what_targets_have_they_build(kind: str, target: str, tmp_path: Path) -> None:
    if kind in PRECISIONS[target]:
        assert WEIGHT[kind] <= size_of(kind, target, tmp_path) < WEIGHT[kind] + CODE
    else:
        with pytest.raises(BackendError, match=r"tensorrt-rtx .* cannot build fp8: "):
            size_of(kind, target, tmp_path)
