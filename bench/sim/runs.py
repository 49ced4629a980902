"""A mapping of whole numbers from 0 on to values, kept as runs of equal values: what makes the simulator fast.

Page numbers map to page states, contents to counts. Neighbouring runs of equal values are always one run.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

END = sys.maxsize
"""The end of the last run: there is a value for every number."""

Value = TypeVar("Value")


class Runs(Generic[Value]):
    """All numbers map to `default` at first."""

    __slots__ = ("_starts", "_values")

    def __init__(self, default: Value) -> None:
        self._starts = [0]
        self._values = [default]

    def __len__(self) -> int:
        return len(self._starts)

    def run_at(self, place: int) -> tuple[int, int, Value]:
        """Return the run that `place` lies in: its first number, the one after its last, its value."""
        index = bisect_right(self._starts, place) - 1
        return self._starts[index], self._end(index), self._values[index]

    def within(self, low: int, high: int) -> Iterator[tuple[int, int, Value]]:
        """Yield the runs of low..high-1, cut at both ends. Do not assign meanwhile: take a list first."""
        index = bisect_right(self._starts, low) - 1
        while low < high:
            end = min(self._end(index), high)
            yield low, end, self._values[index]
            low, index = end, index + 1

    def assign(self, low: int, high: int, value: Value) -> None:
        """Map low..high-1 to `value`."""
        if low >= high:
            return
        starts, values = self._starts, self._values
        first = bisect_right(starts, low) - 1
        last = bisect_left(starts, high) - 1
        pieces: list[tuple[int, Value]] = []
        if first > 0:
            pieces.append((starts[first - 1], values[first - 1]))
        if starts[first] < low:
            pieces.append((starts[first], values[first]))
        pieces.append((low, value))
        if high < self._end(last):
            pieces.append((high, values[last]))
        if last + 1 < len(starts):
            pieces.append((starts[last + 1], values[last + 1]))
        kept = [pieces[0]]
        for piece in pieces[1:]:
            if piece[1] != kept[-1][1]:
                kept.append(piece)
        replaced = slice(max(first - 1, 0), last + 2)
        starts[replaced] = [start for start, _ in kept]
        values[replaced] = [kept_value for _, kept_value in kept]

    def _end(self, index: int) -> int:
        return self._starts[index + 1] if index + 1 < len(self._starts) else END
