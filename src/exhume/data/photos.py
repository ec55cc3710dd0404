"""Crops of four colour photographs; the class says of which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from exhume.data._images import grid, luminance, short_side_to, tensor
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Photos"]

_NAMES: Final = ("astronaut", "chelsea", "coffee", "rocket")
_SHORT_SIDE: Final = 300


@dataclass(frozen=True, kw_only=True)
class Photos(DataSource):
    """Square crops of photographs that ship with scikit-image.

    Each photograph is first shrunk to ``rows`` crops along its shorter side, so that a
    crop holds a recognisable piece of the scene.

    Attributes:
        size: side of a crop, in pixels.
        rows: crops along the shorter side of a photograph.
        stride: distance of neighbouring crops in pixels; None takes ``size``. With a
            smaller one crops overlap, and public ones hold parts of private ones.
        gray: one channel instead of three.
    """

    size: int = 32
    rows: int = 4
    stride: int | None = None
    gray: bool = False

    licence: ClassVar[str] = (
        "scikit-image sample images: astronaut and rocket are in the public domain, "
        "chelsea and coffee are CC0"
    )

    def __post_init__(self) -> None:
        if min(self.size, self.rows) < 1 or self.size * self.rows > _SHORT_SIDE:
            msg = (
                f"size × rows is {self.size} × {self.rows}; the photographs have "
                f"{_SHORT_SIDE} pixels along the shorter side, so choose at most that"
            )
            raise InvalidInput(msg)
        if self.stride is not None and self.stride < 1:
            msg = f"stride is {self.stride}; expected at least 1 pixel"
            raise InvalidInput(msg)

    def load(self) -> Batch:
        """Return the crops, photograph by photograph and row by row."""
        from skimage import data

        crops = [self._crops(tensor(getattr(data, name)())) for name in _NAMES]
        labels = [torch.full((len(c),), i) for i, c in enumerate(crops)]
        spec = EventSpec.image(crops[0].shape[1], self.size, self.size)
        return Batch(torch.cat(crops), torch.cat(labels), spec)

    def _crops(self, photo: torch.Tensor) -> torch.Tensor:
        photo = luminance(photo) if self.gray else photo
        small = short_side_to(photo, self.size * self.rows)
        return grid(small, self.size, self.stride or self.size)
