"""Compiled kernels of Blocks' training: other Python threads run on while one computes, and it computes the same."""

import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
codecache = pytest.importorskip("torch._inductor.codecache")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import unlocked  # noqa: E402

sys.path.remove(FOLDER)

TICKS = 10  # of at least a millisecond; a kernel that keeps the lock leaves two


@pytest.fixture
def bindings(monkeypatch):
    """The class that is changed, as torch has it again afterwards."""
    made = codecache.CppPythonBindingsCodeCache
    monkeypatch.setattr(made, "call_entry_function", made.call_entry_function)
    return made


def waves(x):
    return (torch.sin(x) * torch.exp(-x * x)).tanh().sum()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_threads_run_on_while_a_kernel_computes(bindings):
    assert unlocked.unlock_compiled_kernels()
    assert unlocked.unlock_compiled_kernels()  # asked again it is so already
    compiled, x = (
        torch.compile(waves, dynamic=False),
        torch.randn(30_000_000, generator=torch.Generator().manual_seed(0)),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    compiled(x)
    found, ticks = [], 0
    worker = threading.Thread(target=lambda: found.append(compiled(x)))
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    torch.set_num_threads(threads)
    assert ticks >= TICKS
    torch.testing.assert_close(found[0], waves(x), rtol=1e-3, atol=0.5)


def test_another_torch_is_left_as_it_is(bindings, monkeypatch):
    monkeypatch.setattr(bindings, "call_entry_function", "something({});")
    assert not unlocked.unlock_compiled_kernels()
    assert bindings.call_entry_function == "something({});"
