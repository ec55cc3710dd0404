"""What one example looks like: its kind, shape and range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from exhume.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EventKind", "EventSpec"]

EventKind = Literal["image", "vector"]


@dataclass(frozen=True)
class EventSpec:
    """Shape, kind and range of one example: the signal space of the inverse problem.

    Attributes:
        kind: ``image`` (shape C, H, W) or ``vector`` (shape d).
        shape: shape of one example, without the batch axis.
        low: smallest value an example can take, or None if unbounded.
        high: largest value, or None if unbounded.

    Raises:
        InvalidInput: the shape does not fit the kind, or the range is empty.
    """

    kind: EventKind
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.kind not in get_args(EventKind):
            known = ", ".join(get_args(EventKind))
            msg = f"the event kind is {self.kind!r}; known: {known}"
            raise InvalidInput(msg)
        axes = {"image": 3, "vector": 1}[self.kind]
        if len(self.shape) != axes or min(self.shape, default=0) < 1:
            msg = (
                f"an event of kind {self.kind!r} needs {axes} positive sizes, "
                f"got shape {list(self.shape)}"
            )
            raise InvalidInput(msg)
        if (self.low is None) != (self.high is None):
            msg = "give both ends of the range, low and high, or neither"
            raise InvalidInput(msg)
        if self.low is not None and self.high is not None and self.low >= self.high:
            msg = (
                f"the range [{self.low}, {self.high}] is empty; low must be below high"
            )
            raise InvalidInput(msg)

    @classmethod
    def image(
        cls, channels: int, height: int, width: int, low: float = 0.0, high: float = 1.0
    ) -> EventSpec:
        """Describe an image of shape [C, H, W] with values in [low, high]."""
        return cls("image", (channels, height, width), low, high)

    @classmethod
    def vector(
        cls, dimension: int, low: float | None = None, high: float | None = None
    ) -> EventSpec:
        """Describe a plain vector of d numbers, unbounded unless a range is given."""
        return cls("vector", (dimension,), low, high)

    @property
    def dimension(self) -> int:
        """The number d of reals in one example."""
        return math.prod(self.shape)

    @property
    def peak(self) -> float | None:
        """Peak-to-peak range high − low, or None if unbounded."""
        if self.low is None or self.high is None:
            return None
        return self.high - self.low

    def clamp(self, inputs: Tensor) -> Tensor:
        """Project inputs on the range; the identity if the range is unbounded."""
        return inputs if self.low is None else inputs.clamp(self.low, self.high)
