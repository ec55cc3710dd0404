"""What a data source and a model source are: real examples, and networks for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from torch import nn

from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.member import Member

__all__ = ["DataSource", "ModelSource"]


class DataSource(Member, ABC):
    """Loads real examples; leaves are frozen dataclasses of paths and sizes.

    Attributes:
        licence: of the data, for the report.
    """

    licence: ClassVar[str] = ""

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return small instances for tests and pages: each variant once.

        Args:
            folder: empty; what reads files writes small ones there. Without it nothing
                is written, and such a source need not load.
        """
        del folder
        return (cls(),)

    @abstractmethod
    def load(self) -> Batch:
        """Return every example, in a fixed order, in natural units, float32."""

    def private_pool(self, batch: Batch) -> list[int]:
        """List the examples that may become private ones; all, unless overridden.

        Args:
            batch: what :meth:`load` returned.
        """
        return list(range(len(batch)))


class ModelSource(Member, ABC):
    """Builds a network; leaves are frozen dataclasses of sizes."""

    @abstractmethod
    def build(self, spec: EventSpec, classes: int, key: int) -> nn.Module:
        """Return a network with fresh weights.

        Args:
            spec: shape of an example.
            classes: number K of outputs.
            key: randomness of the weights; nothing seeds globally.
        """
