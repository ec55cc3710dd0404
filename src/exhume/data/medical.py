"""Patches of medical images: a retina and a stained tissue; the class says which."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from exhume.data._images import centre_square, grid, resized, tensor
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Medical"]

_TISSUE_SIDE: Final = 512


@dataclass(frozen=True, kw_only=True)
class Medical(DataSource):
    """Square patches of two medical images that ship with scikit-image.

    Class 0 is a retina: the largest square inside its round field of view, since the
    corners outside are black. Class 1 is a tissue stained by immunohistochemistry.

    Attributes:
        size: side of a patch, in pixels.
        rows: patches along a side of each image, which is shrunk to fit them.
    """

    size: int = 32
    rows: int = 8

    licence: ClassVar[str] = (
        "scikit-image sample images: retina is CC0 (Häggström 2014); the tissue comes "
        "from the Center for Microscopy and Molecular Imaging, with no known copyright "
        "restrictions"
    )

    def __post_init__(self) -> None:
        if min(self.size, self.rows) < 1 or self.size * self.rows > _TISSUE_SIDE:
            msg = (
                f"size × rows is {self.size} × {self.rows}; the images have "
                f"{_TISSUE_SIDE} pixels along a side, so choose at most that"
            )
            raise InvalidInput(msg)

    def load(self) -> Batch:
        """Return the patches, image by image and row by row."""
        from skimage import data

        eye = tensor(data.retina())
        inside = centre_square(eye, math.floor(min(eye.shape[-2:]) / math.sqrt(2)))
        images = [inside, tensor(data.immunohistochemistry())]
        side = self.size * self.rows
        patches = [grid(resized(i, side, side), self.size, self.size) for i in images]
        labels = [torch.full((len(p),), i) for i, p in enumerate(patches)]
        spec = EventSpec.image(3, self.size, self.size)
        return Batch(torch.cat(patches), torch.cat(labels), spec)
