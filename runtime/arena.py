"""Who holds which rows of a store: text keys and values, or modulation rows, shared by key between requests."""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class Span:
    """Rows [begin, begin + length) of the store. fresh: nobody has written them yet."""

    key: Hashable
    begin: int
    length: int
    holders: int = 1
    fresh: bool = True


class Arena:
    """First-fit bookkeeping of a store that grows. It touches no tensor: the backend keeps those.

    Equal keys share rows. Rows nobody holds stay until their place is needed: a prompt used again costs nothing.

    Args:
        capacity: rows to begin with. limit: rows that the store can grow to, None for any number.
    """

    def __init__(self, capacity: int, limit: int | None = None) -> None:
        self.capacity = capacity if limit is None else min(capacity, limit)
        self._limit = limit
        self._spans: list[Span] = []  # sorted by begin

    def acquire(self, key: Hashable, length: int) -> Span:
        """Return the rows of ``key``; when they are fresh the caller writes them.

        They may lie beyond ``capacity``: the caller then makes the store hold ``required`` rows and sets ``capacity``.
        """
        for span in self._spans:
            if span.key == key:
                span.holders += 1
                return span
        begin = self._gap(length)
        if begin is None:
            self._spans = [span for span in self._spans if span.holders]
            begin = self._gap(length)
        if begin is None:
            begin = self._end()
        span = Span(key, begin, length)
        self._spans.append(span)
        self._spans.sort(key=lambda item: item.begin)
        return span

    @property
    def required(self) -> int:
        """``capacity``, doubled as often as the rows given out need; not beyond the limit unless they are."""
        required = self.capacity
        while required < self._end():
            required *= 2
        return required if self._limit is None else max(self._end(), min(required, self._limit))

    def release(self, span: Span) -> None:
        """Give up one hold; rows that were never written are forgotten at once."""
        span.holders -= 1
        if not span.holders and span.fresh:
            self._spans.remove(span)

    def _end(self) -> int:
        return self._spans[-1].begin + self._spans[-1].length if self._spans else 0

    def _gap(self, length: int) -> int | None:
        end = 0
        for span in self._spans:
            if span.begin - end >= length:
                return end
            end = span.begin + span.length
        return end if self.capacity - end >= length else None
