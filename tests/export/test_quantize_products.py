"""Products in 8 and 4 bits, on a small graph: error, isolation of tokens, and what ONNX Runtime makes of them."""

import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from framert.export.quantize import block_int4, per_token, weights
from framert.export.weights import Weight, write_model

INT8, FP8 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN
WIDTH, INNER, EPS = 128, 256, 1e-5
# The products of a layer: three that share an input, of which a norm reads one; a gate; and one behind the gate.
GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
layer (float[n, 128] x, float[128] ones) => (float[n, 128] query, float[n, 128] value, float[n, 128] result)
{
    q = MatMul (x, wq)
    query = RMSNormalization <axis = -1, epsilon = 1e-5> (q, ones)
    value = MatMul (x, wv)
    gate = MatMul (x, w1)
    bent = Sigmoid (gate)
    silu = Mul (gate, bent)
    up = MatMul (x, w3)
    inner = Mul (silu, up)
    down = MatMul (inner, w2)
    result = RMSNormalization <axis = -1, epsilon = 1e-5> (down, ones)
}
"""
SHAPES = {"wq": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH), "w1": (WIDTH, INNER), "w3": (WIDTH, INNER), "w2": (INNER, WIDTH)}


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    return {name: (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def x():
    """Tokens whose sizes differ a million times, one of them zero; the first four stand far above the norms' eps."""
    tokens = np.random.default_rng(1).standard_normal((7, WIDTH)) * 10.0 ** np.array([0, 0, 1, 0.5, 3, -3, 0])[:, None]
    tokens[6] = 0
    return tokens.astype(np.float32)


def exact(x, values):
    x = x.astype(np.float64)
    gate = x @ values["w1"]
    down = (gate * (1 + np.tanh(gate / 2)) / 2 * (x @ values["w3"])) @ values["w2"]
    return [_norm(x @ values["wq"]), x @ values["wv"], _norm(down)]


def _norm(x):
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + EPS)


def build(values, rewrite, folder, text=GRAPH):
    """Write the graph with its products rewritten; returns the file."""
    proto = onnx.parser.parse_model(text)
    for name, value in values.items():
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape))
    model = ir.from_proto(proto)
    stored = {name: Weight(array.shape, lambda array=array: array) for name, array in values.items()}
    for value in [value for value in model.graph.inputs if value.name in stored]:
        model.graph.inputs.remove(value)
    made = rewrite(model.graph, stored)
    write_model(model, made, [], folder, "layer")
    return folder / "layer.onnx"


def quantized(kind, typical=(), signed=False):
    usual = dict.fromkeys(typical, 3.0)
    return lambda graph, stored: per_token.quantize_products(
        graph, stored, kind, lambda name: name in SHAPES, usual, signed=signed
    )


def run(session, x):
    return session.run(None, {"x": x, "ones": np.ones(WIDTH, np.float32)})


def errors(found, expected):
    """Relative L2 of each output, worst token; the token of zeros must be zero."""
    for value in found:
        assert not value[6].any()
    return [
        max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(value[:4], right[:4], strict=True))
        for value, right in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("typical", [(), tuple(SHAPES)], ids=["scaled back", "left to the norms"])
def test_int8_is_near_whatever_the_size_of_a_token(values, x, typical, signed, open_session, tmp_path):
    session = open_session(build(values, quantized(INT8, typical, signed), tmp_path))
    assert max(errors(run(session, x), exact(x, values))) < 0.04


def test_a_token_does_not_depend_on_its_neighbours(values, x, open_session, tmp_path):
    session = open_session(build(values, quantized(INT8, tuple(SHAPES)), tmp_path))
    together = run(session, x)
    for token in range(len(x)):
        for alone, packed in zip(run(session, x[token : token + 1]), together, strict=True):
            np.testing.assert_array_equal(alone[0], packed[token])


def test_onnxruntime_makes_integer_products_of_all(values, open_session, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    file = build(values, quantized(INT8, tuple(SHAPES)), tmp_path)
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == len(SHAPES)
    assert "MatMul" not in operators
    assert operators.count("QuantizeLinear") == 2  # one for the four products that read x, one for w2


def test_scales_are_left_out_where_a_norm_cancels_them(values, tmp_path):
    def factors(typical):
        nodes = onnx.load(build(values, quantized(INT8, typical), tmp_path)).graph.node
        return {node.output[0] for node in nodes if node.op_type == "Mul" and node.input[1].endswith("_amax")}

    assert factors(()) == {"q", "value", "gate", "up", "down"}
    assert factors(tuple(SHAPES)) == {"value", "gate"}  # w3's cancels in w2's amax, as w2's cancels in the norm
    assert factors(("wq",)) == {"value", "gate", "up", "down"}
    assert factors(("w3",)) == {"q", "value", "gate", "up", "down"}


def test_eps_follows_the_usual_token(values, tmp_path):
    nodes = onnx.load(build(values, quantized(INT8, ("wq",)), tmp_path)).graph.node
    eps = [attribute.f for node in nodes for attribute in node.attribute if attribute.name == "epsilon"]
    assert eps == [pytest.approx(EPS / 9), pytest.approx(EPS)]


def test_fp8_is_near(values, x, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    file = build(values, quantized(FP8, tuple(SHAPES)), tmp_path)
    onnx.checker.check_model(onnx.load(file))
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    assert max(errors(run(session, x), exact(x, values))) < 0.15


@pytest.mark.parametrize("plain", [False, True], ids=["MatMulNBits", "blocks of 128"])
def test_int4_is_near_and_keeps_tokens_apart(values, x, plain, open_session, tmp_path):
    file = build(values, lambda graph, stored: block_int4.quantize_products(
        graph, stored, lambda name: name in SHAPES, plain=plain
    ), tmp_path)  # fmt: skip
    onnx.checker.check_model(onnx.load(file))
    operators = [node.op_type for node in onnx.load(file).graph.node]
    assert operators.count("DequantizeLinear" if plain else "MatMulNBits") == len(SHAPES)
    session = open_session(file)
    together = run(session, x)
    assert max(errors(together, exact(x, values))) < 0.3
    for token in range(len(x)):
        for alone, packed in zip(run(session, x[token : token + 1]), together, strict=True):
            np.testing.assert_allclose(alone[0], packed[token], rtol=1e-5, atol=1e-6 * np.abs(packed[token]).max())


@pytest.mark.parametrize(("inner", "block", "rows"), [(256, 128, 256), (192, 64, 192), (200, 64, 256), (90, 64, 128)])
def test_a_width_that_is_no_multiple_of_the_block_is_widened(inner, block, rows, values, x, open_session, tmp_path):
    """TensorRT takes blocks of 128 and 64 alone, and every chosen product must hold four bits."""
    narrow = values | {"w2": values["w2"][:inner], "w1": values["w1"][:, :inner], "w3": values["w3"][:, :inner]}
    file = build(narrow, lambda graph, stored: block_int4.quantize_products(
        graph, stored, lambda name: name in SHAPES, plain=True
    ), tmp_path)  # fmt: skip
    model = onnx.load(file)
    onnx.checker.check_model(model)
    stored = {one.name: tuple(one.dims) for one in model.graph.initializer}
    assert stored["w2_values"] == (rows, WIDTH)
    assert stored["w2_scale"] == (rows // block, WIDTH)
    assert not set(SHAPES) & set(stored)
    assert sum(node.op_type == "Pad" for node in model.graph.node) == (rows != inner)
    assert max(errors(run(open_session(file), x), exact(x, narrow))) < 0.3


def test_products_that_share_an_input_share_its_widening(values, x, open_session, tmp_path):
    narrow = {name: value if name == "w2" else value[:100] for name, value in values.items()}
    file = build(narrow, lambda graph, stored: block_int4.quantize_products(
        graph, stored, lambda name: name in SHAPES, plain=True
    ), tmp_path, GRAPH.replace("float[n, 128] x", "float[n, 100] x"))  # fmt: skip
    assert sum(node.op_type == "Pad" for node in onnx.load(file).graph.node) == 1
    assert max(errors(run(open_session(file), x[:, :100]), exact(x[:, :100], narrow))) < 0.3


@pytest.mark.parametrize(
    "make", [lambda weight: weights.per_channel(weight, INT8), lambda w: block_int4._blocks(w, 32, False)]
)
def test_a_quantized_weight_is_made_once_and_gone_when_its_scales_are_written(make, values):
    reads = []

    def read():
        reads.append(1)
        return values["w1"]

    stored, scales = make(Weight(SHAPES["w1"], read))
    array = stored.read()
    alive = weakref.ref(array)
    first = scales.read()
    del array
    assert len(reads) == 1
    assert alive() is None
    np.testing.assert_array_equal(scales.read(), first)
    assert len(reads) == 2


def test_quantizing_leaves_the_root_logger_alone():
    import logging

    before = list(logging.getLogger().handlers), logging.getLogger().level
    block_int4._quantizer()
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before


@pytest.mark.parametrize("kind", [INT8, FP8], ids=["int8", "fp8"])
def test_weights_are_rounded_per_channel(kind):
    rng = np.random.default_rng(2)
    matrix = (rng.standard_normal((64, 5)) * 10.0 ** np.arange(-2, 3)).astype(np.float32)
    matrix[:, 2] = 0
    rounded, scales = weights.quantize(matrix, kind)
    step = rounded if kind == INT8 else rounded.view(ir.DataType.FLOAT8E4M3FN.numpy()).astype(np.float32)
    error = np.abs(step * scales - matrix)
    # int8: half a step of the channel. e4m3: half a unit in the last of 3 places, or of the smallest step.
    allowed = scales / 2 if kind == INT8 else np.maximum(np.abs(matrix) * 2.0**-4, scales * 2.0**-10)
    assert (error <= allowed * 1.001).all()
    assert not step[:, 2].any()
    assert np.abs(step).max() == weights.LARGEST[kind]
