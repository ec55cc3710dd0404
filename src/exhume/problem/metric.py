"""What a metric is: a pure function of guess and truth, one value per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.member import Member

__all__ = ["Metric"]


class Metric(Member, ABC):
    """A score of matched examples; leaves are frozen dataclasses.

    Attributes:
        unit: for tables and axes, e.g. "dB".
        higher_is_better: from the attacker's side.
        compares: whether it reads inputs or targets.
    """

    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool]
    compares: ClassVar[Literal["inputs", "targets"]] = "inputs"

    @abstractmethod
    def __call__(
        self, guess: Tensor, truth: Tensor, spec: EventSpec
    ) -> Tensor | NotApplicable:
        """Score each example.

        Args:
            guess: matched estimates, shape [B, ...].
            truth: shape [B, ...].
            spec: kind and range of an example.

        Returns:
            shape [B], or why the metric does not fit this kind of data.
        """
