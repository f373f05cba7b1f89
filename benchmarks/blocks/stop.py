"""When a long training stops, and when it saves: asked to, out of time, or every few minutes."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer import Trainer

SAVE_SECONDS = 200


class Stop:
    """True once the process has been asked to end, by SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def __bool__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


class Timer:
    """Wall clock of one process: a limit in minutes (None for none), and when to save."""

    def __init__(self, minutes: float | None) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.begin = self.saved = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the minutes have passed."""
        return self.limit is not None and time.monotonic() - self.begin >= self.limit

    @property
    def due(self) -> bool:
        """True once every SAVE_SECONDS."""
        if time.monotonic() - self.saved < SAVE_SECONDS:
            return False
        self.saved = time.monotonic()
        return True

    @contextmanager
    def step(self, trainer: Trainer) -> Iterator[None]:
        """Count what happens inside as training time of ``trainer``."""
        start, cpu = time.monotonic(), time.process_time()
        yield
        trainer.seconds += time.monotonic() - start
        trainer.cpu_seconds += time.process_time() - cpu
