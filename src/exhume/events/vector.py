"""A plain vector of d numbers, in no order that means anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from exhume.problem.event import EventSpec

__all__ = ["Vector"]


@dataclass(frozen=True)
class Vector(EventSpec):
    """A vector of shape [d]: features of one record, signals, embeddings.

    Attributes:
        shape: the number d of coordinates.
        low: smallest value of a coordinate, or None if unbounded.
        high: largest value, or None if unbounded.
    """

    axes: ClassVar[int] = 1
    plain: ClassVar[bool] = True

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return an unbounded vector, and one with a range."""
        return (cls((12,)), cls((7,), -1.0, 3.0))
