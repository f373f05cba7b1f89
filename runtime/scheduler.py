"""Which requests run in the next denoiser call. Pure bookkeeping: it never touches a tensor."""

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def tokens(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Scheduler(Generic[Item]):
    """First come, first served: a request joins when its tokens fit beside those under way, and stays to its end.

    Args:
        max_tokens: model tokens per call. A request larger than that runs alone.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._waiting: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def items(self) -> list[Item]:
        """Return what is waiting, first come first."""
        return list(self._waiting)

    def add(self, item: Item) -> None:
        self._waiting.append(item)

    def remove(self, item: Item) -> None:
        """Take a waiting item out."""
        self._waiting.remove(item)

    def next(self, running_tokens: int, joins: Callable[[Item], bool] = lambda _: True) -> Item | None:
        """Return the item that joins beside ``running_tokens``, or None. No one overtakes: order is kept.

        Args:
            joins: whether the backend takes an item beside those under way, which tokens alone do not decide.
        """
        if not self._waiting:
            return None
        first = self._waiting[0]
        if running_tokens and (running_tokens + first.tokens > self.max_tokens or not joins(first)):
            return None
        return self._waiting.popleft()
