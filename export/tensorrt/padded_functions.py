"""Padded attention in ONNX's text form: index tables that all layers share, and the body of one layer."""

import re

import onnx
from onnx import parser

# Index tables, once per call for all layers that have their ranges. Padding repeats the last row of its own sequence
# (row 0 of the pack where that has none), so that a neighbour's NaN never enters; it is masked, and where a sequence
# has no keys at all ``key_any`` is false. flat: the place of each token among the padded queries, 0 for one that is in
# no sequence.
_TABLES = """
<domain: "framert", opset_import: ["" : 23]>
FrameTables (query, key, q_range, kv_range, window) => (query_index, flat, key_index, key_mask, key_any)
{
    zero = Constant <value = int32 {0}> ()
    one = Constant <value = int32 {1}> ()
    zero_64 = Constant <value = int64 {0}> ()
    one_64 = Constant <value = int64 {1}> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    middle = Constant <value_ints = [1, 2]> ()

    columns = Unsqueeze (window, first)
    q0, qn = Split <axis = 1, num_outputs = 2> (q_range)
    k0, kn = Split <axis = 1, num_outputs = 2> (kv_range)
    GATHER(query, q0, qn, columns, query_index)
    GATHER(key, k0, kn, columns, key_index)
    key_valid = Less (columns, kn)
    key_mask = Unsqueeze (key_valid, middle)
    key_some = Greater (kn, zero)
    key_any = Unsqueeze (key_some, middle)

    token_count = Shape <start = 0, end = 1> (query)
    token_scalar = Squeeze (token_count, first)
    tokens_64 = Range (zero_64, token_scalar, one_64)
    tokens_32 = Cast <to = 6> (tokens_64)
    tokens = Unsqueeze (tokens_32, first)
    sequence_count = Shape <start = 0, end = 1> (q_range)
    sequence_scalar = Squeeze (sequence_count, first)
    sequences_64 = Range (zero_64, sequence_scalar, one_64)
    padded_64 = Shape <start = 0, end = 1> (window)
    begins_64 = Mul (sequences_64, padded_64)
    begins_32 = Cast <to = 6> (begins_64)
    begins = Unsqueeze (begins_32, second)
    offset = Sub (tokens, q0)
    behind = Less (offset, zero)
    before_end = Less (offset, qn)
    not_behind = Not (behind)
    inside = And (before_end, not_behind)
    place = Add (begins, offset)
    own_place = Where (inside, place, zero)
    flat = ReduceSum <keepdims = 0> (own_place, first)
}
"""
_TEXT_TABLES = """
<domain: "framert", opset_import: ["" : 23]>
FrameTextTables (text, text_range, text_window) => (text_index, text_mask, text_any)
{
    zero = Constant <value = int32 {0}> ()
    one = Constant <value = int32 {1}> ()
    first = Constant <value_ints = [0]> ()
    middle = Constant <value_ints = [1, 2]> ()
    text_columns = Unsqueeze (text_window, first)
    t0, tn = Split <axis = 1, num_outputs = 2> (text_range)
    GATHER(text, t0, tn, text_columns, text_index)
    text_valid = Less (text_columns, tn)
    text_mask = Unsqueeze (text_valid, middle)
    text_some = Greater (tn, zero)
    text_any = Unsqueeze (text_some, middle)
}
"""
_GATHER = """
    {out}_last = Sub ({n}, one)
    {out}_within = Min ({columns}, {out}_last)
    {out}_least = Max ({out}_within, zero)
    {out}_free = Add ({begin}, {out}_least)
    {out}_size = Shape <start = 0, end = 1> ({source})
    {out}_size_32 = Cast <to = 6> ({out}_size)
    {out}_limit = Sub ({out}_size_32, one)
    {out} = Min ({out}_free, {out}_limit)
"""

# Head h of the queries reads key-value head h / group of its own sequence and h mod kv_heads of the text: the axes that
# split h are turned accordingly, and the heads that share a key-value head become rows of one product. Logits are
# capped and exponentiated in fp32 whatever the graph's type: near a softcap of 30 a bf16 is 0.125 wide.
_BODY = """
<domain: "framert", opset_import: ["" : 23]>
PaddedFrameAttention (query, key, value, query_index, flat, key_index, key_mask, key_any TEXT_INPUTS) => (output)
{
    softcap = Constant <value = float {SOFTCAP}> ()
    own_scale_32 = Constant <value = float {OWN_SCALE}> ()
    lowest = Constant <value = float {-3.0e38}> ()
    nothing_32 = Constant <value = float {0.0}> ()
    nothing = CastLike (nothing_32, query)
    repeated = Constant <value_ints = [0, 0, KV, GROUP, WIDTH]> ()
    folded = Constant <value_ints = [0, KV, -1, WIDTH]> ()
    unfolded = Constant <value_ints = [0, KV, GROUP, -1, WIDTH]> ()
    packed = Constant <value_ints = [-1, HEADS, WIDTH]> ()
    q = Gather <axis = 0> (query, query_index)

    repeat = Reshape (q, repeated)
    repeat_turned = Transpose <perm = [0, 2, 3, 1, 4]> (repeat)
    rows = Reshape (repeat_turned, folded)
    own_scale = CastLike (own_scale_32, key)
    own_key = Mul (key, own_scale)
    k = Gather <axis = 0> (own_key, key_index)
    k_turned = Transpose <perm = [0, 2, 3, 1]> (k)
    v = Gather <axis = 0> (value, key_index)
    v_turned = Transpose <perm = [0, 2, 1, 3]> (v)
    logits = MatMul (rows, k_turned)
    logits_32 = Cast <to = 1> (logits)
    CAPPED
    masked = Where (key_mask, capped, lowest)
    weights_32 = Softmax <axis = -1> (masked)
    weights = CastLike (weights_32, value)
    mixed = MatMul (weights, v_turned)
    own = Where (key_any, mixed, nothing)
    own_split = Reshape (own, unfolded)
    own_turned = Transpose <perm = [0, 3, 1, 2, 4]> (own_split)
    own_out = Reshape (own_turned, packed)
    TEXT_EACH
    output = Gather <axis = 0> (both, flat)
}
"""
_NO_TEXT = {"TEXT_INPUTS": "", "TEXT_EACH": "both = Identity (own_out)"}
_TEXT = {
    "TEXT_INPUTS": ", text_k, text_v, gate, text_index, text_mask, text_any",
    "TEXT_EACH": """
    scale = Constant <value = float {SCALE}> ()
    tiled = Constant <value_ints = [0, 0, GROUP, KV, WIDTH]> ()
    per_head = Constant <value_ints = [HEADS, 1]> ()
    tile = Reshape (q, tiled)
    tile_turned = Transpose <perm = [0, 3, 2, 1, 4]> (tile)
    text_rows = Reshape (tile_turned, folded)
    text_scale = CastLike (scale, text_k)
    text_key = Mul (text_k, text_scale)
    tk = Gather <axis = 0> (text_key, text_index)
    tk_turned = Transpose <perm = [0, 2, 3, 1]> (tk)
    tv = Gather <axis = 0> (text_v, text_index)
    tv_turned = Transpose <perm = [0, 2, 1, 3]> (tv)
    text_logits = MatMul (text_rows, tk_turned)
    text_logits_32 = Cast <to = 1> (text_logits)
    text_masked = Where (text_mask, text_logits_32, lowest)
    text_weights_32 = Softmax <axis = -1> (text_masked)
    text_weights = CastLike (text_weights_32, text_v)
    text_mixed = MatMul (text_weights, tv_turned)
    text = Where (text_any, text_mixed, nothing)
    text_split = Reshape (text, unfolded)
    text_turned = Transpose <perm = [0, 3, 2, 1, 4]> (text_split)
    text_out = Reshape (text_turned, packed)
    own_gate = CastLike (gate, query)
    head_gate = Reshape (own_gate, per_head)
    gated = Mul (text_out, head_gate)
    both = Add (own_out, gated)""",
}
_MARK = re.compile(r"GATHER\((\w+), (\w+), (\w+), (\w+), (\w+)\)")


def tables_function() -> onnx.FunctionProto:
    """Return the function that makes the index tables of one pair of ranges."""
    return parser.parse_function(_MARK.sub(_gather, _TABLES))


def text_tables_function() -> onnx.FunctionProto:
    """Return the function that makes the index tables of text keys and values."""
    return parser.parse_function(_MARK.sub(_gather, _TEXT_TABLES))


def _gather(match: re.Match[str]) -> str:
    source, begin, count, columns, out = match.groups()
    return _GATHER.format(source=source, begin=begin, n=count, columns=columns, out=out)


def layer_function(
    softcap: float, scale: float, *, heads: int, kv_heads: int, head_dim: int, text: bool
) -> onnx.FunctionProto:
    """Return the function of one layer; with a softcap of 0 the logits are left as they are.

    text: whether it attends to a text beside its own sequence.
    """
    capped = "bent = Tanh (logits_32) capped = Mul (bent, softcap)" if softcap else "capped = Identity (logits_32)"
    words = {"HEADS": heads, "KV": kv_heads, "GROUP": heads // kv_heads, "WIDTH": head_dim, "CAPPED": capped}
    words |= {"SOFTCAP": softcap, "OWN_SCALE": scale / softcap if softcap else scale, "SCALE": scale}
    body = _BODY
    for name, word in {**(_TEXT if text else _NO_TEXT), **words}.items():
        body = re.sub(rf"\b{name}\b", str(word), body)
    return parser.parse_function(body)
