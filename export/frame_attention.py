"""FrameAttention's local function: the body, in standard operators, of the node that ``export.traced`` leaves.

ONNX Runtime and OpenVINO run the function; TensorRT with a plugin of this name (attribute plugin_namespace) runs that.
"""

import re

import onnx
from onnx import parser

OWN = ("query", "key", "value", "q_range", "kv_range")  # inputs without those of the text
# A loop over sequences: measured faster than padding or masking, and each sequence gets the same bits alone and packed.
# The query heads that share a key-value head are neighbours, folded into the rows of one product; text keys and values,
# which are few, are tiled to the heads, so that queries and results are turned once. q_range must be contiguous,
# in order and cover all tokens. The reshapes to a shape that is already there keep ONNX Runtime from fusing the
# transposes before them into the products: fused, a sequence without tokens or text divides by zero.
_BODY = """
<domain: "framert", opset_import: ["" : 23]>
FrameAttention <softcap, scale, plugin_namespace>
    (query, key, value, q_range, kv_range TEXT_INPUTS) => (output)
{
    softcap = Constant <value_float: float = @softcap> ()
    scale = Constant <value_float: float = @scale> ()
    logit_scale = LOGIT_SCALE
    zero = Constant <value_ints = [0]> ()
    minus = Constant <value_ints = [-1]> ()
    heads = Shape <start = 1, end = 2> (query)
    width = Shape <start = 2, end = 3> (query)
    kv_heads = Shape <start = 1, end = 2> (key)
    folded = Concat <axis = 0> (kv_heads, minus, width)
    TEXT_ONCE
    own_key = Mul (key, logit_scale)
    ranges = Concat <axis = 1> (q_range, kv_range TEXT_RANGE)
    ranges_64 = Cast <to = 7> (ranges)
    sequences = Shape <start = 0, end = 1> (q_range)
    count = Squeeze (sequences, zero)
    always = Constant <value = bool {1}> ()
    none = SequenceEmpty <dtype = 1> ()
    outputs = Loop (count, always, none) <body = sequence
        (int64 index, bool go, seq(float) done) => (bool next, seq(float) more)
    {
        next = Identity (go)
        r = Gather <axis = 0> (ranges_64, index)
        q0, qn, k0, kn TEXT_SPLIT (r)
        q1 = Add (q0, qn)
        k1 = Add (k0, kn)
        by_head = Concat <axis = 0> (heads, qn, width)
        q = Slice (query, q0, q1, zero)

        turned = Transpose <perm = [1, 0, 2]> (q)
        rows = Reshape (turned, folded)
        k = Slice (own_key, k0, k1, zero)
        k_turned = Transpose <perm = [1, 2, 0]> (k)
        k_shape = Concat <axis = 0> (kv_heads, width, kn)
        k_kept = Reshape <allowzero = 1> (k_turned, k_shape)
        v = Slice (value, k0, k1, zero)
        v_turned = Transpose <perm = [1, 0, 2]> (v)
        v_shape = Concat <axis = 0> (kv_heads, kn, width)
        v_kept = Reshape <allowzero = 1> (v_turned, v_shape)
        logits = MatMul (rows, k_kept)
        CAPPED
        weights = Softmax <axis = -1> (capped)
        own = MatMul (weights, v_kept)
        own_heads = Reshape <allowzero = 1> (own, by_head)
        TEXT_EACH
        both = Transpose <perm = [1, 0, 2]> (mixed)
        more = SequenceInsert (done, both)
    }>
    output = ConcatFromSequence <axis = 0> (outputs)
}
"""
# What is left of it without text, and what gated attention to a text puts there.
_NO_TEXT = {
    "TEXT_INPUTS": "",
    "TEXT_ONCE": "",
    "TEXT_RANGE": "",
    "TEXT_SPLIT": "= Split <axis = 0, num_outputs = 4>",
    "TEXT_EACH": "mixed = Identity (own_heads)",
}
_TEXT = {
    "TEXT_INPUTS": ", text_k, text_v, text_range, gate",
    "TEXT_RANGE": ", text_range",
    "TEXT_SPLIT": ", t0, tn = Split <axis = 0, num_outputs = 6>",
    "TEXT_ONCE": """
    group = Div (heads, kv_heads)
    one = Constant <value_ints = [1, 1]> ()
    tiles = Concat <axis = 0> (group, one)
    scalar = Constant <value_ints = [-1, 1, 1]> ()
    head_gate = Reshape (gate, scalar)""",
    "TEXT_EACH": """
        t1 = Add (t0, tn)
        tk = Slice (text_k, t0, t1, zero)
        tk_scaled = Mul (tk, scale)
        tk_turned = Transpose <perm = [1, 2, 0]> (tk_scaled)
        tk_shape = Concat <axis = 0> (kv_heads, width, tn)
        tk_once = Reshape <allowzero = 1> (tk_turned, tk_shape)
        tk_kept = Tile (tk_once, tiles)
        tv = Slice (text_v, t0, t1, zero)
        tv_turned = Transpose <perm = [1, 0, 2]> (tv)
        tv_shape = Concat <axis = 0> (kv_heads, tn, width)
        tv_once = Reshape <allowzero = 1> (tv_turned, tv_shape)
        tv_kept = Tile (tv_once, tiles)
        text_rows = Reshape <allowzero = 1> (turned, by_head)
        text_logits = MatMul (text_rows, tk_kept)
        text_weights = Softmax <axis = -1> (text_logits)
        text = MatMul (text_weights, tv_kept)
        gated = Mul (text, head_gate)
        mixed = Add (own_heads, gated)""",
}


def function(softcap: float, dtype: int = onnx.TensorProto.FLOAT, *, text: bool = True) -> onnx.FunctionProto:
    """Return the local function; with a softcap of 0 the logits are left as they are.

    Args:
        dtype: ONNX type of the tensors. The body computes in float32, whatever it is: sequences of bfloat16 do not
            exist, and processors without half precision would cast around every operator.
        text: whether it has the four inputs of the text attention.
    """
    if softcap:
        scale = "Div (scale, softcap)"
        capped = "bent = Tanh (logits) capped = Mul (bent, softcap)"
    else:
        scale, capped = "Identity (scale)", "capped = Identity (logits)"
    body = _BODY
    for mark, lines in {**(_TEXT if text else _NO_TEXT), "LOGIT_SCALE": scale, "CAPPED": capped}.items():
        body = body.replace(mark, lines)
    if dtype != onnx.TensorProto.FLOAT:
        head, rest = body.split("{", 1)
        for name in ("query", "key", "value", *(("text_k", "text_v", "gate") if text else ())):
            head = re.sub(rf"\b{name}\b", f"{name}_given", head)
            rest = f" {name} = Cast <to = 1> ({name}_given)" + rest
        rest = rest.replace("output = Concat", "output_32 = Concat").rstrip().removesuffix("}")
        body = f"{head}{{{rest} output = Cast <to = {dtype}> (output_32)\n}}"
    return parser.parse_function(body)
