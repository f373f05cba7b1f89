"""Weights are written one at a time, inside the graph's file or beside it, and computed on the way."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from framert.export import weights as weights_module
from framert.export.passes import clean, fold_weights
from framert.export.weights import Weight, write_model

TEXT = """
<ir_version: 11, opset_import: ["" : 23]>
g (float[n, 4] x, float[3, 4] w1, float[2, 4] w2, float[5] gate) => (float[n, 5] y)
{
    w = Concat <axis = 0> (w1, w2)
    product = Gemm <transB = 1> (x, w, gate)
    scale = Tanh (gate)
    y = Mul (product, scale)
}
"""
RNG = np.random.default_rng(0)
STORED = {
    name: RNG.standard_normal(shape).astype(np.float32) for name, shape in (("w1", (3, 4)), ("w2", (2, 4)), ("gate", 5))
}


def folded() -> tuple[ir.Model, dict[str, Weight]]:
    model = ir.from_onnx_text(TEXT)
    clean(model)
    sources = {name: Weight(array.shape, lambda array=array: array) for name, array in STORED.items()}
    return model, fold_weights(model.graph, list(model.graph.inputs)[1:], sources)


def test_what_depends_on_weights_alone_becomes_a_weight() -> None:
    model, weights = folded()
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Mul"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    by_shape = {weight.shape: weight.read() for weight in weights.values()}
    np.testing.assert_array_equal(by_shape[4, 5], np.concatenate((STORED["w1"], STORED["w2"])).T)
    assert len(weights) == 3  # the product's, the bias, and tanh(gate)


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["beside", "inside"])
def test_written_graphs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, open_session: Callable[[Path], Any]
) -> None:
    monkeypatch.setattr(weights_module, "EXTERNAL_FROM", limit)
    model, weights = folded()
    files = write_model(model, weights, [], tmp_path, "g")
    assert files == (("g.onnx", "g.onnx.data") if limit == 0 else ("g.onnx",))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)
    onnx.checker.check_model(tmp_path / "g.onnx")
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    (y,) = open_session(tmp_path / "g.onnx").run(None, {"x": x})
    weight = np.concatenate((STORED["w1"], STORED["w2"]))
    np.testing.assert_allclose(y, (x @ weight.T + STORED["gate"]) * np.tanh(STORED["gate"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["beside", "inside"])
def test_memory_holds_one_weight_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(weights_module, "EXTERNAL_FROM", limit)
    side, count = 512, 16
    inputs = ", ".join(f"float[{side}, {side}] w{index}" for index in range(count))
    total = "".join(f"y{index + 1} = MatMul (y{index}, w{index})\n" for index in range(count))
    signature = f"g (float[n, {side}] y0, {inputs}) => (float[n, {side}] y{count})"
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["" : 23]>\n{signature} {{\n{total}}}')
    sources = {
        f"w{index}": Weight((side, side), lambda index=index: np.full((side, side), index, np.float32))
        for index in range(count)
    }
    weights = fold_weights(model.graph, list(model.graph.inputs)[1:], sources)
    tracemalloc.start()
    write_model(model, weights, [], tmp_path, "g")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 4 * side * side
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > count * one
    assert peak < 3 * one
