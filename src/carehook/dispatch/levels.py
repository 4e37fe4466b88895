"""Things in line at numbered levels: the lowest level goes first, and on a level who has been there for longest. Pure.

Filing, taking out and finding the first cost the same however many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Levels(Generic[Item]):
    """A line for each of the levels 0 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self._lines: list[OrderedDict[Item, int]] = [OrderedDict() for _ in range(count)]
        self._occupied = 0  # a bit for each line that is not empty: the lowest is found without looking

    def add(self, item: Item, level: int, turn: int) -> None:
        """Put an item at the end of a line. `turn` tells who of two lines came first; it only ever grows."""
        self._lines[level][item] = turn
        self._occupied |= 1 << level

    def remove(self, item: Item, level: int) -> None:
        """Take an item out of the line that it is in."""
        line = self._lines[level]
        del line[item]
        if not line:
            self._occupied &= ~(1 << level)

    def first(self) -> tuple[int, int, Item] | None:
        """Who goes first: the level, the turn and the item; None where there is nobody."""
        if not self._occupied:
            return None
        level = (self._occupied & -self._occupied).bit_length() - 1
        item, turn = next(iter(self._lines[level].items()))
        return level, turn, item
