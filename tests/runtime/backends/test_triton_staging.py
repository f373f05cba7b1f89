"""What backend "triton" does around a device: staging without waiting, and failures in one sentence."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from framert.runtime.backends.triton import staging  # noqa: E402
from framert.runtime.backends.triton.failures import as_backend_error  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError  # noqa: E402


def test_arrays_arrive_at_the_begin_of_their_targets():
    send = staging.Staging(torch.device("cpu")).send
    row, update = torch.full((5,), 9, dtype=torch.int32), torch.full((4, 2), 9.0)
    send((row, np.array([1, 2, 3], np.int32)), (update, np.arange(4, dtype=np.float32).reshape(2, 2)))
    assert row.tolist() == [1, 2, 3, 9, 9]
    assert update.tolist() == [[0, 1], [2, 3], [9, 9], [9, 9]]


def test_a_buffer_is_written_again_only_after_its_copy(monkeypatch):
    """With events and pinned memory in the place of CUDA's: every buffer waits for its own copy, and for no other."""
    events = []

    class Event:
        def __init__(self):
            self.number = len([event for event in events if event[0] == "made"])
            events.append(("made", self.number))

        def record(self):
            events.append(("record", self.number))

        def synchronize(self):
            events.append(("wait", self.number))

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    ring = staging.Staging(torch.device("cuda"))
    target, made = torch.zeros(3), []
    for count in range(2 * staging.DEPTH):
        if not count:
            events.clear()  # the making
        ring.send((target, np.full(1 + count % 3, count, np.float32)))
        made.append(target[0].item())
    assert made == list(range(2 * staging.DEPTH))
    turn = [kind for number in range(staging.DEPTH) for kind in (("wait", number), ("record", number))]
    assert events == turn * 2


class TritonLikeError(Exception):
    __module__ = "triton.runtime.errors"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("CUDA error: an illegal access\nand how to debug it"),
            "the step failed: CUDA error: an illegal access",
        ),
        (
            torch.cuda.OutOfMemoryError("Tried to allocate\n2 GiB"),
            "the step ran out of device memory; use a smaller size",
        ),
        (TritonLikeError("out of resource: shared memory"), "the step failed: out of resource: shared memory"),
        (RuntimeError(), "the step failed: RuntimeError"),
    ],
    ids=["cuda", "memory", "triton", "empty"],
)
def test_failures_become_one_sentence(error, says):
    with pytest.raises(BackendError) as caught, as_backend_error("the step"):
        raise error
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ConfigError("mine"), KeyError("a bug")], ids=["framert's own", "a bug"])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), as_backend_error("the step"):
        raise error
