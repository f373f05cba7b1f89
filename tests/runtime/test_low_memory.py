"""low_memory: never two graphs at once, the same pictures, and arenas that outlive the graphs."""

from itertools import groupby

import numpy as np
import pytest

import framert
from framert.runtime.errors import ConfigError

CALL = {"guidance": 4.0, "prompt": "a red cube", "steps": 2, "size": (32, 32), "seed": 3}
GRAPHS = ["text_encoder", "conditioner", "denoiser", "vae_decoder"]


def loaded(pipe):
    backend = pipe._backend
    return set(getattr(backend, "_sessions", None) or getattr(backend, "_compiled", {}))


@pytest.fixture(params=["onnxruntime", "openvino"])
def pipe(request, golden_bundle):
    pytest.importorskip(request.param)
    return framert.load(golden_bundle, backend=request.param, threads=1, low_memory=True)


def test_one_graph_at_a_time_and_the_same_picture(pipe, golden_bundle, monkeypatch):
    seen = []
    name = "session" if pipe.backend_name == "onnxruntime" else "compiled"
    load = getattr(pipe._backend, name)

    def watched(graph):
        made = load(graph)
        seen.append((graph, loaded(pipe)))
        return made

    monkeypatch.setattr(pipe._backend, name, watched)
    result = pipe.run("text_to_image", **CALL)
    assert [graph for graph, _ in groupby(graph for graph, _ in seen)] == GRAPHS  # each loaded once, for both prompts
    assert all(graphs == {graph} for graph, graphs in seen)
    whole = framert.load(golden_bundle, backend=pipe.backend_name, threads=1).run("text_to_image", **CALL)
    error = np.linalg.norm(result.latents - whole.latents) / np.linalg.norm(whole.latents)
    assert error < 1e-4  # products without packed weights add in another order


def test_packed_equals_alone_bit_for_bit(pipe):
    requests = [
        framert.Request(task="text_to_image", **CALL),
        framert.Request(task="text_to_image", prompt="two", steps=3, size=(48, 16), guidance=1.0, seed=5),
    ]
    alone = [pipe.engine().submit(request).result() for request in requests]
    engine = pipe.engine()
    tickets = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    for ticket, expected in zip(tickets, alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected.latents)


def test_a_request_after_another_loads_again(pipe):
    first, second = (pipe.run("text_to_image", **CALL) for _ in range(2))
    np.testing.assert_array_equal(first.latents, second.latents)
    assert loaded(pipe) == {"vae_decoder"}


def test_a_backend_without_it_refuses(golden_bundle):
    with pytest.raises(ConfigError, match="low_memory"):
        framert.load(golden_bundle, backend="triton", low_memory=True)
