"""Handwritten digits, 8 x 8, grey: the test set that ships with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from exhume.problem.batch import Batch, checked_batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource

__all__ = ["Digits"]

_LEVELS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """1,797 digits with 17 grey levels; the class is the digit."""

    licence: ClassVar[str] = "CC BY 4.0 (UCI Machine Learning Repository)"
    bibtex: ClassVar[str] = """\
@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  howpublished = {UCI Machine Learning Repository},
  year = {1998}
}"""

    def load(self) -> Batch:
        """Return all digits, in the order of scikit-learn."""
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        images = found.images[:, None] / _LEVELS
        return checked_batch(images, found.target, EventSpec.image(1, 8, 8), "digits")
