"""TensorRT's own words: which of them the user sees, and the ones an error is made of."""

from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
# On a machine without a CUDA driver, TensorRT-RTX adds this to every error, whatever its cause.
NO_DRIVER = "cudaError 35"


class Log:
    """TensorRT's log lines: errors are kept for an exception or ``tell_errors``, others go to ``say`` at once.

    verbosity: 0 tells errors alone, 1 also warnings and information, 2 everything.
    """

    def __init__(self, module: Any) -> None:
        severity = module.ILogger.Severity
        self._levels = {
            severity.INTERNAL_ERROR: 0,
            severity.ERROR: 0,
            severity.WARNING: 1,
            severity.INFO: 1,
            severity.VERBOSE: 2,
        }
        self.errors: list[str] = []
        self.verbosity = 0
        self.say: Say | None = None
        outer = self

        class Logger(module.ILogger):  # type: ignore[misc]  # a class of whichever module is given
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, level: Any, line: str) -> None:
                outer.receive(level, line)

        self.logger = Logger()

    def receive(self, severity: Any, line: str) -> None:
        level = 2 if NO_DRIVER in line else self._levels[severity]
        if level == 0:
            self.errors.append(line)
        if 0 < level <= self.verbosity or (level == 0 and self.verbosity):
            self._tell(f"{severity.name.lower()}: {line}")

    def clear(self) -> None:
        self.errors.clear()

    def tell_errors(self) -> None:
        """Tell the errors of something that succeeded all the same, and forget them."""
        if not self.verbosity:  # otherwise they were told when they came
            for error in self.errors:
                self._tell(f"error: {error}")
        self.clear()

    def _tell(self, line: str) -> None:
        if self.say:
            self.say(line)

    def errors_in_words(self) -> str:
        """Return the first errors in one line, or that there are none."""
        words = [" ".join(error.split()) for error in dict.fromkeys(self.errors)]
        return "; ".join(words[:3]) or "it gives no reason; -vv shows all it says"
