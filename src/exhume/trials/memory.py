"""What one process keeps between trials: the latest results within a limit of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Memory"]

Value = TypeVar("Value")


class Memory(Generic[Value]):
    """Results of pure functions by key, so that a hit cannot change a result.

    Args:
        size: says how many bytes a value holds.
        limit: bytes that are kept at most; the values longest unused give way.
    """

    def __init__(self, size: Callable[[Value], int], limit: int = 2**28) -> None:
        self._size = size
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def get(self, key: str) -> Value | None:
        """Return what is kept under a key, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: str, value: Value) -> None:
        """Keep a value."""
        self._kept[key] = value, self._size(value)
        self._kept.move_to_end(key)
        while sum(held for _, held in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
