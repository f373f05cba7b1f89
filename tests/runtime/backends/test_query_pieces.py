"""Pieces of queries: they cover every sequence in order, know its keys and text, and change no more than a rounding."""

from types import SimpleNamespace

import numpy as np
import pytest

import framert
from framert.runtime import tables as tables_module
from framert.runtime.backends import query_pieces


def packed(sizes):
    members = [
        SimpleNamespace(
            frames=frames,
            height=side,
            width=side,
            branches=[tables_module.BranchRows(5 * index, 3 + index, 0, 1.0) for index in range(2)],
        )
        for frames, side in sizes
    ]
    return tables_module.build(members, guidance_branches=4)


@pytest.mark.parametrize("heads", [8, 32])
@pytest.mark.parametrize("sizes", [[(1, 8)], [(1, 16), (2, 32), (1, 1)], [(3, 31)]], ids=str)
def test_pieces_cover_every_sequence_in_order(sizes, heads):
    whole = packed(sizes)
    cut = query_pieces.pieces(whole, heads)
    rows = zip(*(cut[name].tolist() for name in ("q_range", "kv_range", "text_range")), strict=True)
    token = sequence = 0
    for (begin, length), keys, text in rows:
        assert begin == token
        token += length
        assert (keys, text) == (whole.kv_range[sequence].tolist(), whole.text_range[sequence].tolist())
        assert length <= query_pieces.ROWS or heads * length * keys[1] <= query_pieces.LOGITS
        sequence += token == whole.q_range[sequence].sum()
    assert (token, sequence) == (len(whole.source), len(whole.q_range))
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in cut.values())


def test_a_short_sequence_is_one_piece():
    whole = packed([(2, 16), (1, 4)])
    for name, array in query_pieces.pieces(whole, 8).items():
        np.testing.assert_array_equal(array, getattr(whole, name))


def test_a_sequence_is_cut_alike_alone_and_packed():
    lengths = [
        query_pieces.pieces(packed(sizes), 8)["q_range"][:, 1].tolist() for sizes in ([(2, 32)], [(1, 5), (2, 32)])
    ]
    assert len(lengths[0]) > 2  # or nothing is shown
    assert lengths[1][2:] == lengths[0]


@pytest.fixture
def small(monkeypatch):
    """Cut sequences of the golden model's sizes, too."""
    monkeypatch.setattr(query_pieces, "ROWS", 3)
    monkeypatch.setattr(query_pieces, "LOGITS", 1)


REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", steps=2, guidance=4.0, size=(32, 48), seed=1),
    framert.Request(task="text_to_image", prompt="a", steps=2, guidance=1.0, size=(48, 64), seed=2),
]


def test_packed_equals_alone_in_pieces(golden_bundle, small):
    pipe = framert.load(golden_bundle, backend="onnxruntime", threads=2)
    alone = [pipe.engine().submit(request).result().latents for request in REQUESTS]
    engine = pipe.engine()
    tickets = [engine.submit(request) for request in REQUESTS]
    while engine.step():
        pass
    for ticket, expected in zip(tickets, alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected)


def test_pieces_change_no_more_than_a_rounding(golden_bundle, monkeypatch):
    made = []
    for rows in (query_pieces.ROWS, 3):
        monkeypatch.setattr(query_pieces, "ROWS", rows)
        monkeypatch.setattr(query_pieces, "LOGITS", 1 if rows == 3 else query_pieces.LOGITS)
        pipe = framert.load(golden_bundle, backend="onnxruntime", threads=2)
        made.append(pipe.engine().submit(REQUESTS[1]).result().latents.astype(np.float64))
    assert np.linalg.norm(made[1] - made[0]) <= 1e-6 * np.linalg.norm(made[0])
