"""A handle on a submitted request."""

import threading
from collections.abc import Callable

from framert.runtime.errors import CancelledError, FramertError
from framert.runtime.result import Result


class Ticket:
    """The result of one request, now or later. Made by ``Engine.submit``; safe to use from any thread."""

    def __init__(self, drive: Callable[["Ticket", float | None], None]) -> None:
        self._drive = drive
        self._finished = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._cancelled = False

    @property
    def done(self) -> bool:
        """True once there is a result, an error, or the cancellation took effect."""
        return self._finished.is_set()

    @property
    def cancelled(self) -> bool:
        """True once ``cancel`` was called before the end."""
        return self._cancelled

    def cancel(self) -> bool:
        """Ask for the request to be dropped before the next denoiser call; False if it was already over."""
        if self.done:
            return False
        self._cancelled = True
        return True

    def result(self, timeout: float | None = None) -> Result:
        """Return the result, driving the engine's loop if nobody else does.

        Args:
            timeout: seconds after which to stop waiting, None for never. Who drives the loop finishes the call under
                way first.
        Raises: the request's own error; CancelledError; FramertError when the time is over.
        """
        if not self.done:
            self._drive(self, timeout)
        if not self.done:
            raise FramertError(f"no result after {timeout} seconds; wait longer or cancel() the ticket")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def wait(self, timeout: float | None) -> None:
        self._finished.wait(timeout)

    def resolve(self, result: Result) -> None:
        self._result = result
        self._finished.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._finished.set()

    def drop(self) -> None:
        """End a cancelled request."""
        self.fail(CancelledError("the request was cancelled before it finished; submit it again for a result"))
