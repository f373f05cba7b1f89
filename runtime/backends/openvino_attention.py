"""FrameAttention for OpenVINO, whose ONNX reader knows no local functions: the same formula, built from its operators.

With a text apart, all sequences of a call are equally long (``openvino_runs`` sees to it) and attention is one batch: a
Loop would copy all that it is given and returns, and pays a quarter of a millisecond for each turn. Without one, where
text tokens are part of a sequence, lengths differ within a request, and a Loop it is.
"""

from typing import Any

import numpy as np

UNSEEN = -1e30  # added to the logit of text that belongs to somebody else: its weight is exactly zero


def extension() -> Any:
    """Return the conversion of FrameAttention nodes, for ``openvino.Core.add_extension``."""
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("FrameAttention", "framert", _convert)


def _convert(node: Any) -> list[Any]:
    """Return the output of one node: (tokens, heads, head_dim), as ``kernels.frame_attention`` defines it."""
    made = _Attention(node)
    return [(made.with_text() if node.get_input_size() > 5 else made.looped()).output(0)]


class _Attention:
    """Builds one node. Shapes: queries (sequences, heads, length, width), keys and values with their own heads."""

    def __init__(self, node: Any) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.inputs = [node.get_input(index) for index in range(node.get_input_size())]
        query, key = self.inputs[:2]
        self.softcap, self.scale = node.get_attribute("softcap", 0.0), node.get_attribute("scale", 1.0)
        self.heads, self.width = (query.get_partial_shape()[axis].get_length() for axis in (1, 2))
        self.kv_heads = key.get_partial_shape()[1].get_length()

    def whole(self, *values: int) -> Any:
        return self.op.constant(np.array(values, np.int64))

    def number(self, value: float) -> Any:
        return self.op.constant(np.float32(value))

    def batched(self, x: Any, count: Any, heads: int) -> Any:
        """(sequences * length, heads, width) -> (sequences, heads, length, width)."""
        op = self.op
        shape = op.concat([count, self.whole(-1, heads, self.width)], axis=0)
        return op.transpose(op.reshape(x, shape, False), self.whole(0, 2, 1, 3))

    def flat(self, x: Any) -> Any:
        """(sequences, heads, length, width) -> (sequences * length, heads, width)."""
        turned = self.op.transpose(x, self.whole(0, 2, 1, 3))
        return self.op.reshape(turned, self.whole(-1, self.heads, self.width), False)

    def scaled(self, key: Any) -> Any:
        return self.op.multiply(key, self.number(self.scale / self.softcap if self.softcap else self.scale))

    def own(self, query: Any, key: Any, value: Any, count: Any) -> Any:
        """Attend within each sequence, to scaled keys."""
        op = self.op
        # query heads that share a key-value head are neighbours: folded into the rows of one product
        folded = op.concat([count, self.whole(self.kv_heads, -1, self.width)], axis=0)
        logits = op.matmul(op.reshape(query, folded, False), key, False, True)
        if self.softcap:
            logits = op.multiply(op.tanh(logits), self.number(self.softcap))
        unfolded = op.concat([count, self.whole(self.heads, -1, self.width)], axis=0)
        return op.reshape(op.matmul(op.softmax(logits, -1), value, False, False), unfolded, False)

    def with_text(self) -> Any:
        op = self.op
        query, key, value, q_range, _, text_k, text_v, text_range, gate = self.inputs
        count = op.gather(op.shape_of(q_range, "i64"), self.whole(0), op.constant(0))
        queries = self.batched(query, count, self.heads)
        keys, values = (self.batched(x, count, self.kv_heads) for x in (self.scaled(key), value))
        own = self.own(queries, keys, values, count)

        # texts may differ in length: gathered to the longest, the rest masked
        begin, length = op.split(op.convert(text_range, "i64"), op.constant(1), 2).outputs()
        longest = op.maximum(op.reduce_max(length, self.whole(0, 1), False), op.constant(np.int64(1)))
        place = op.range(op.constant(np.int64(0)), longest, op.constant(np.int64(1)), "i64")
        last = op.maximum(op.subtract(op.add(begin, length), self.whole(1)), self.whole(0))
        index = op.minimum(op.add(begin, op.unsqueeze(place, self.whole(0))), last)
        seen = op.select(op.less(op.unsqueeze(place, self.whole(0)), length), self.number(0), self.number(UNSEEN))
        logits = op.matmul(queries, self.tiled(op.multiply(text_k, self.number(self.scale)), index), False, True)
        weights = op.softmax(op.add(logits, op.unsqueeze(seen, self.whole(1, 2))), -1)
        text = op.matmul(weights, self.tiled(text_v, index), False, False)
        # a sequence without any text has read a token that is not its own
        any_text = op.unsqueeze(op.convert(op.minimum(length, self.whole(1)), "f32"), self.whole(2, 3))
        opened = op.multiply(op.reshape(gate, self.whole(self.heads, 1, 1), False), any_text)
        return self.flat(op.add(own, op.multiply(text, opened)))

    def tiled(self, arena: Any, index: Any) -> Any:
        """Gather (sequences, heads, longest, width): query head h reads text head h % kv_heads."""
        op = self.op
        found = op.transpose(op.gather(arena, index, op.constant(0)), self.whole(0, 2, 1, 3))
        return op.concat([found] * (self.heads // self.kv_heads), axis=1)

    def looped(self) -> Any:
        """Attend within sequences of any lengths, one after another."""
        import openvino

        op = self.op
        query, key, value, q_range, kv_range = self.inputs
        free = openvino.PartialShape
        turn = op.parameter(free([]), np.int64)
        done, q = (op.parameter(free([-1, self.heads, self.width]), np.float32) for _ in range(2))
        k, v = (op.parameter(free([-1, self.kv_heads, self.width]), np.float32) for _ in range(2))
        rows = op.parameter(free([-1, 4]), np.int64)
        row = op.reshape(op.gather(rows, turn, op.constant(0)), self.whole(4, 1), False)
        q_begin, q_length, k_begin, k_length = (
            op.reshape(one, self.whole(1), False) for one in op.split(row, op.constant(0), 4).outputs()
        )

        def part(x: Any, begin: Any, length: Any, heads: int) -> Any:
            cut = op.slice(x, begin, op.add(begin, length), self.whole(1), self.whole(0))
            return self.batched(cut, self.whole(1), heads)

        queries = part(q, q_begin, q_length, self.heads)
        keys, values = (part(x, k_begin, k_length, self.kv_heads) for x in (k, v))
        own = self.flat(self.own(queries, keys, values, self.whole(1)))
        more = op.concat([done, own], axis=0)
        body = openvino.Model([more, op.constant(np.array(True))], [turn, done, q, k, v, rows], "sequence")

        count = op.squeeze(op.gather(op.shape_of(q_range, "i64"), self.whole(0), op.constant(0)), self.whole(0))
        loop = op.loop(count, op.constant(np.array(True)))
        loop.set_function(body)
        loop.set_special_body_ports([0, 1])
        none = op.constant(np.zeros((0, self.heads, self.width), np.float32))
        loop.set_merged_input(done, none.output(0), more.output(0))
        ranges = op.convert(op.concat([q_range, kv_range], axis=1), "i64")
        given = ((q, query), (k, self.scaled(key).output(0)), (v, value), (rows, ranges.output(0)))
        for inner, outer in given:
            loop.set_invariant_input(inner, outer)
        return op.reshape(loop.get_iter_value(more.output(0), -1), op.shape_of(query, "i64"), False)
