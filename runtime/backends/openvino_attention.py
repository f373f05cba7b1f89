"""FrameAttention for OpenVINO, whose ONNX reader knows no local functions: the same formula, built from its operators.

OpenVINO pays about a quarter of a millisecond for each turn of a Loop. So this loop turns once for each *run* of
neighbouring sequences of equal length, such as the branches of one request, and computes a run as one batch.
"""

from typing import Any

import numpy as np

from framert.runtime.arrays import Ints
from framert.runtime.tables import Tables

UNSEEN = -1e30  # the logit of text that belongs to somebody else: its weight is exactly zero


def runs(tables: Tables) -> tuple[Ints, Ints]:
    """Return what the converted graph takes as q_range and kv_range: a row for each run of equal sequences.

    Returns: (runs, 2) sequences and their query length; (runs, 2) begin of the first one's keys and the key length.
    """
    queries: list[list[int]] = []
    keys: list[list[int]] = []
    end = -1
    for (_, length), (begin, key_length) in zip(tables.q_range.tolist(), tables.kv_range.tolist(), strict=True):
        if queries and queries[-1][1] == length and keys[-1][1] == key_length and begin == end:
            queries[-1][0] += 1
        else:
            queries.append([1, length])
            keys.append([begin, key_length])
        end = begin + key_length
    return np.asarray(queries, np.int32), np.asarray(keys, np.int32)


def extension() -> Any:
    """Return the conversion of FrameAttention nodes, for ``openvino.Core.add_extension``."""
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("FrameAttention", "framert", _convert)


def _convert(node: Any) -> list[Any]:
    """Return the output of one node: (tokens, heads, head_dim), as ``kernels.frame_attention`` defines it."""
    import openvino
    from openvino import opset13 as op

    def whole(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    def number(value: float) -> Any:
        return op.constant(np.float32(value))

    def part(x: Any, begin: Any, length: Any) -> Any:
        return op.slice(x, begin, op.add(begin, length), whole(1), whole(0))

    def heads_first(x: Any) -> Any:
        return op.transpose(x, whole(0, 2, 1, 3))

    query, key, value, q_range, kv_range, text_k, text_v, text_range, gate = (node.get_input(i) for i in range(9))
    softcap, scale = node.get_attribute("softcap", 0.0), node.get_attribute("scale", 1.0)
    heads, width = (query.get_partial_shape()[axis].get_length() for axis in (1, 2))
    kv_heads = key.get_partial_shape()[1].get_length()

    counts = op.convert(q_range, "i64")
    first = op.cum_sum(op.gather(counts, whole(0), op.constant(1)), op.constant(0), exclusive=True)
    begin = op.cum_sum(op.reduce_prod(counts, whole(1), True), op.constant(0), exclusive=True)
    table = op.concat([counts, op.convert(kv_range, "i64"), begin, first], axis=1)

    dense = openvino.PartialShape
    turn = op.parameter(dense([]), np.int64)
    done, q = (op.parameter(dense([-1, heads, width]), np.float32) for _ in range(2))
    k, v, tk, tv = (op.parameter(dense([-1, kv_heads, width]), np.float32) for _ in range(4))
    rows = op.parameter(dense([-1, 6]), np.int64)
    texts = op.parameter(dense([-1, 2]), np.int64)
    head_gate = op.parameter(dense([heads, 1, 1]), np.float32)

    row = op.reshape(op.gather(rows, turn, op.constant(0)), whole(6, 1), False)
    count, length, k_begin, k_length, q_begin, member = (
        op.reshape(one, whole(1), False) for one in op.split(row, op.constant(0), 6).outputs()
    )
    batch = op.concat([count, whole(heads, -1, width)], axis=0)

    q_shape = op.concat([count, length, whole(heads, width)], axis=0)
    k_shape = op.concat([count, k_length, whole(kv_heads, width)], axis=0)
    q_run = heads_first(op.reshape(part(q, q_begin, op.multiply(count, length)), q_shape, False))
    k_run, v_run = (
        heads_first(op.reshape(part(x, k_begin, op.multiply(count, k_length)), k_shape, False)) for x in (k, v)
    )
    # query heads that share a key-value head are neighbours: folded into the rows of one product
    folded = op.reshape(q_run, op.concat([count, whole(kv_heads, -1, width)], axis=0), False)
    logits = op.matmul(folded, k_run, False, True)
    if softcap:
        logits = op.multiply(op.tanh(logits), number(softcap))
    own = op.reshape(op.matmul(op.softmax(logits, -1), v_run, False, False), batch, False)

    # the texts of a run may differ in length: gathered to the longest, the rest masked. Query head h reads text head
    # h % kv_heads
    mine = part(texts, member, count)
    text_begin, text_length = (op.unsqueeze(x, whole(1)) for x in _columns(op, mine, whole))
    longest = op.maximum(op.reduce_max(text_length, whole(0, 1), False), op.constant(np.int64(1)))
    place = op.unsqueeze(op.range(op.constant(np.int64(0)), longest, op.constant(np.int64(1)), "i64"), whole(0))
    seen = op.less(place, text_length)
    last = op.maximum(op.subtract(op.add(text_begin, text_length), whole(1)), whole(0))
    index = op.minimum(op.add(text_begin, place), last)
    tk_run, tv_run = (heads_first(op.gather(x, index, op.constant(0))) for x in (tk, tv))
    tk_run, tv_run = (op.concat([x] * (heads // kv_heads), axis=1) for x in (tk_run, tv_run))
    text_logits = op.matmul(q_run, op.multiply(tk_run, number(scale)), False, True)
    mask = op.unsqueeze(seen, whole(1, 2))
    weights = op.softmax(op.select(mask, text_logits, number(UNSEEN)), -1)
    weights = op.multiply(weights, op.convert(mask, "f32"))  # a sequence without any text
    text = op.matmul(weights, tv_run, False, False)

    both = op.add(own, op.multiply(text, head_gate))
    more = op.concat([done, op.reshape(heads_first(both), whole(-1, heads, width), False)], axis=0)
    body = openvino.Model(
        [more, op.constant(np.array(True))], [turn, done, q, k, v, tk, tv, rows, texts, head_gate], "run"
    )

    times = op.squeeze(op.gather(op.shape_of(q_range, "i64"), whole(0), op.constant(0)), whole(0))
    loop = op.loop(times, op.constant(np.array(True)))
    loop.set_function(body)
    loop.set_special_body_ports([0, 1])
    none = op.constant(np.zeros((0, heads, width), np.float32))
    loop.set_merged_input(done, none.output(0), more.output(0))
    logit_scale = number(scale / softcap if softcap else scale)
    given = (
        (q, query),
        (k, op.multiply(key, logit_scale).output(0)),
        (v, value),
        (tk, text_k),
        (tv, text_v),
        (rows, table.output(0)),
        (texts, op.convert(text_range, "i64").output(0)),
        (head_gate, op.reshape(gate, whole(heads, 1, 1), False).output(0)),
    )
    for inner, outer in given:
        loop.set_invariant_input(inner, outer)
    output = loop.get_iter_value(more.output(0), -1)
    return [op.reshape(output, op.shape_of(query, "i64"), False).output(0)]


def _columns(op: Any, pairs: Any, whole: Any) -> list[Any]:
    """Return the two columns, (rows,) each, of a (rows, 2) tensor."""
    return [op.reshape(column, whole(-1), False) for column in op.split(pairs, op.constant(1), 2).outputs()]
