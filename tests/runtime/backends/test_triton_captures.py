"""CUDA graphs of a denoiser: memory they share, one capture at a time; torch's part is played by stand-ins."""

import gc
import threading
from contextlib import contextmanager, nullcontext

import pytest

torch = pytest.importorskip("torch")

from framert.runtime.backends.triton.captures import Captures  # noqa: E402


class Cuda:
    """Pools as torch keeps them: a pool whose last graph is gone is retired, and capturing into it is an error."""

    def __init__(self):
        self.graphs, self.underway, self.most, self.made = [], 0, 0, 0
        cuda = self

        class CUDAGraph:
            def pool(self):
                return self.own

            def __del__(self):
                cuda.graphs = [pool for pool in cuda.graphs if pool[1] != id(self)]

        self.CUDAGraph = CUDAGraph

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert (stream, capture_error_mode) == ("a stream", "thread_local")
        assert pool is None or pool in [held for held, _ in self.graphs]
        self.underway += 1
        self.most = max(self.most, self.underway)
        try:
            yield
        finally:
            self.underway -= 1
        self.made += pool is None
        graph.own = self.made if pool is None else pool
        self.graphs.append((graph.own, id(graph)))


@pytest.fixture
def cuda(monkeypatch):
    made = Cuda()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", made.CUDAGraph)
    monkeypatch.setattr(torch.cuda, "graph", made.graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "a stream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the default stream")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(stream))
    return made


def test_graphs_share_the_memory_of_one_that_lives(cuda):
    captures = Captures(torch.device("cuda", 0))
    first, second = (captures.capture(lambda: None) for _ in range(2))
    assert first.pool() == second.pool()
    del first
    gc.collect()
    third = captures.capture(lambda: None)
    assert third.pool() == second.pool()
    pool = third.pool()
    del second, third
    gc.collect()  # as after the arenas moved
    assert captures.capture(lambda: None).pool() != pool


def test_a_broken_capture_leaves_its_memory_alone(cuda):
    captures = Captures(torch.device("cuda", 0))
    first = captures.capture(lambda: None)
    with pytest.raises(ZeroDivisionError):
        captures.capture(lambda: 1 / 0)
    assert captures.capture(lambda: None).pool() != first.pool()
    assert cuda.underway == 0


def test_engines_capture_one_after_another(cuda):
    inside, go = threading.Event(), threading.Event()

    def slow():
        inside.set()
        go.wait(10)

    threads = [threading.Thread(target=Captures(torch.device("cuda", 0)).capture, args=(slow,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    for thread in threads:
        thread.join(0.2)  # time enough to go in where nothing holds it back
    go.set()
    for thread in threads:
        thread.join(10)
    assert (cuda.most, cuda.made) == (1, 2)
