"""An image: channels of pixels on a grid, in [0, 1] unless another range is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from exhume.problem.event import EventSpec

if TYPE_CHECKING:
    import numpy as np

    from exhume.report.pictures import Picture

__all__ = ["Image"]


@dataclass(frozen=True)
class Image(EventSpec):
    """An image of shape [C, H, W].

    Attributes:
        shape: channels, height and width.
        low: value of black, or None if unbounded.
        high: value of white, or None if unbounded.
    """

    axes: ClassVar[int] = 3
    plain: ClassVar[bool] = True
    noun: ClassVar[str] = "image"
    usual: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a grey and a colour image of 8 × 8 pixels."""
        return (cls((1, 8, 8), 0.0, 1.0), cls((3, 8, 8), 0.0, 1.0))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.shape
        return channels, height, width

    def draw(self, example: np.ndarray, truth: np.ndarray) -> Picture:
        """Draw one pixel per pixel, from black to white over the range."""
        from exhume.report.pictures import Picture, limits, png

        ends = limits(truth)
        if self.low is not None and self.high is not None:
            ends = self.low, self.high
        return Picture(png=png(example, *ends), width=example.shape[-1])
