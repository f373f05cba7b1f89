"""FrameAttention for OpenVINO, whose ONNX reader knows no local functions: the same formula, built from its operators.

Attention is one batch over the sequences of a call: a Loop would copy all that it is given and returns, and pays a
quarter of a millisecond for each turn. With a text apart they are equally long (``openvino_runs`` sees to it). Where
text tokens are part of a sequence, lengths differ as a request's prompts do: sequences are gathered to the longest.
"""

from typing import Any

import numpy as np

UNSEEN = -1e30  # added to the logit of a token that is not the sequence's own: its weight is exactly zero


# Logits of a product, 64 MiB of fp32. Heads are computed in as many parts as that takes, in about the same time: eight
# heads of three sequences of 1100 tokens take 485 MiB at once and 310 one by one, in bfloat16 260 and 166.
LOGITS = 2**24


def extension(per_head: int) -> Any:
    """Return the conversion of FrameAttention nodes, for ``openvino.Core.add_extension``.

    Args:
        per_head: logits of one head in a call as large as they are meant to be; a larger one takes more memory.
    """
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("FrameAttention", "framert", lambda node: _convert(node, per_head))


def _convert(node: Any, per_head: int) -> list[Any]:
    """Return the output of one node: (tokens, heads, head_dim), as ``kernels.frame_attention`` defines it."""
    attention = _Attention(node, per_head)
    return [(attention.with_text() if node.get_input_size() > 5 else attention.padded()).output(0)]


class _Attention:
    """Builds one node. Shapes: queries (sequences, heads, length, width), keys and values with their own heads."""

    def __init__(self, node: Any, per_head: int) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.inputs = [node.get_input(index) for index in range(node.get_input_size())]
        query, key, _, q_range = self.inputs[:4]
        self.softcap, self.scale = node.get_attribute("softcap", 0.0), node.get_attribute("scale", 1.0)
        self.heads, self.width = (query.get_partial_shape()[axis].get_length() for axis in (1, 2))
        self.kv_heads = key.get_partial_shape()[1].get_length()
        parts = (n for n in range(1, self.kv_heads) if self.kv_heads % n == 0 and self.heads * per_head <= n * LOGITS)
        self.parts = next(parts, self.kv_heads)
        self.count = self.op.gather(self.op.shape_of(q_range, "i64"), self.whole(0), self.op.constant(0))

    def whole(self, *values: int) -> Any:
        return self.op.constant(np.array(values, np.int64))

    def number(self, value: float) -> Any:
        return self.op.constant(np.float32(value))

    def turned(self, x: Any) -> Any:
        """Exchange the middle axes: (sequences, length, heads, width) and back."""
        return self.op.transpose(x, self.whole(0, 2, 1, 3))

    def batched(self, x: Any, heads: int) -> Any:
        """(sequences * length, heads, width) -> (sequences, heads, length, width)."""
        shape = self.op.concat([self.count, self.whole(-1, heads, self.width)], axis=0)
        return self.turned(self.op.reshape(x, shape, False))

    def flat(self, x: Any) -> Any:
        """(sequences, heads, length, width) -> (sequences * length, heads, width)."""
        return self.op.reshape(self.turned(x), self.whole(-1, self.heads, self.width), False)

    def scaled(self, key: Any) -> Any:
        return self.op.multiply(key, self.number(self.scale / self.softcap if self.softcap else self.scale))

    def places(self, ranges: Any) -> tuple[Any, Any, Any]:
        """Return the rows of each range, (sequences, longest), which are its own, and the lengths, (sequences, 1).

        A shorter one repeats its last row.
        """
        op = self.op
        begin, length = op.split(op.convert(ranges, "i64"), op.constant(1), 2).outputs()
        longest = op.maximum(op.reduce_max(length, self.whole(0, 1), False), op.constant(np.int64(1)))
        step = op.range(op.constant(np.int64(0)), longest, op.constant(np.int64(1)), "i64")
        place = op.unsqueeze(step, self.whole(0))
        last = op.maximum(op.subtract(op.add(begin, length), self.whole(1)), self.whole(0))
        return op.minimum(op.add(begin, place), last), op.less(place, length), length

    def mask(self, own: Any) -> Any:
        """Return what is added to logits, (sequences, 1, 1, longest)."""
        return self.op.unsqueeze(self.op.select(own, self.number(0), self.number(UNSEEN)), self.whole(1, 2))

    def gathered(self, x: Any, index: Any) -> Any:
        """Return (sequences, heads, longest, width) of x (rows, heads, width)."""
        return self.turned(self.op.gather(x, index, self.op.constant(0)))

    def own(self, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        """Attend within each sequence, to scaled keys."""
        op = self.op
        # query heads that share a key-value head are neighbours: folded into the rows of one product
        folded = op.concat([self.count, self.whole(self.kv_heads, -1, self.width)], axis=0)
        given = [op.reshape(query, folded, False), key, value]
        parts = zip(*(op.split(x, op.constant(1), self.parts).outputs() for x in given), strict=True)
        mixed = [self.mixed(q, k, v, mask) for q, k, v in parts]
        unfolded = op.concat([self.count, self.whole(self.heads, -1, self.width)], axis=0)
        return op.reshape(op.concat(mixed, axis=1), unfolded, False)

    def mixed(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        """Attend with some of the heads."""
        op = self.op
        logits = op.matmul(query, key, False, True)
        if self.softcap:
            logits = op.multiply(op.tanh(logits), self.number(self.softcap))
        if mask is not None:
            logits = op.add(logits, mask)
        return op.matmul(op.softmax(logits, -1), value, False, False)

    def with_text(self) -> Any:
        op = self.op
        query, key, value, _, _, text_k, text_v, text_range, gate = self.inputs
        queries = self.batched(query, self.heads)
        keys, values = (self.batched(x, self.kv_heads) for x in (self.scaled(key), value))
        own = self.own(queries, keys, values)

        index, seen, length = self.places(text_range)  # texts may differ in length
        logits = op.matmul(queries, self.tiled(op.multiply(text_k, self.number(self.scale)), index), False, True)
        weights = op.softmax(op.add(logits, self.mask(seen)), -1)
        text = op.matmul(weights, self.tiled(text_v, index), False, False)
        # a sequence without any text has read a token that is not its own
        any_text = op.unsqueeze(op.convert(op.minimum(length, self.whole(1)), "f32"), self.whole(2, 3))
        opened = op.multiply(op.reshape(gate, self.whole(self.heads, 1, 1), False), any_text)
        return self.flat(op.add(own, op.multiply(text, opened)))

    def tiled(self, arena: Any, index: Any) -> Any:
        """Gather (sequences, heads, longest, width): query head h reads text head h % kv_heads."""
        return self.op.concat([self.gathered(arena, index)] * (self.heads // self.kv_heads), axis=1)

    def padded(self) -> Any:
        """Attend within sequences of any lengths; one that has queries has keys. Queries cover all tokens in order."""
        op = self.op
        query, key, value, q_range, kv_range = self.inputs
        index, asked, _ = self.places(q_range)
        key_index, seen, _ = self.places(kv_range)
        keys, values = (self.gathered(x, key_index) for x in (self.scaled(key), value))
        mixed = self.own(self.gathered(query, index), keys, values, self.mask(seen))
        rows = op.squeeze(op.non_zero(op.reshape(asked, self.whole(-1), False), "i64"), self.whole(0))
        return op.gather(self.flat(mixed), rows, op.constant(0))
