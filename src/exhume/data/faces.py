"""Faces of the LFW data set, 25 x 25, grey: 100 faces and 100 backgrounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from exhume.problem.batch import Batch, checked_batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Faces"]

_FACES = 100
_FACE = 1


@dataclass(frozen=True, kw_only=True)
class Faces(DataSource):
    """The subset of Labeled Faces in the Wild that ships with scikit-image.

    Class 1 is a face, class 0 a piece of background. Only faces become private.

    Attributes:
        include: ``all``, or ``faces`` alone.
    """

    include: Literal["all", "faces"] = "all"

    licence: ClassVar[str] = (
        "Labeled Faces in the Wild: photographs of public figures from news sites, for "
        "research; the subset is distributed with scikit-image"
    )
    bibtex: ClassVar[str] = """\
@techreport{huang2007labeled,
  title = {Labeled Faces in the Wild: A Database for Studying Face Recognition in
           Unconstrained Environments},
  author = {Huang, Gary B. and Ramesh, Manu and Berg, Tamara and Learned-Miller, Erik},
  institution = {University of Massachusetts, Amherst},
  number = {07-49},
  year = {2007}
}"""

    def load(self) -> Batch:
        """Return the images, faces first."""
        from skimage.data import lfw_subset

        images = lfw_subset()[:, None]
        labels = np.zeros(len(images), dtype=np.int64)
        labels[:_FACES] = _FACE
        if self.include == "faces":
            images, labels = images[:_FACES], labels[:_FACES]
        return checked_batch(images, labels, EventSpec.image(1, 25, 25), "lfw_subset")

    def private_pool(self, batch: Batch) -> list[int]:
        """List the faces."""
        return (batch.targets == _FACE).nonzero().flatten().tolist()
