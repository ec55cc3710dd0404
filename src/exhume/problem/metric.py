"""What a metric is: a pure function of guess and truth, one value per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from exhume.config import default_options, describe
from exhume.member import Member
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec

__all__ = ["Metric"]


class Metric(Member, ABC):
    """A score of matched examples; leaves are frozen dataclasses.

    Attributes:
        label: for the heading of a column, e.g. "PSNR"; the registered name if "".
        quantity: in a sentence, e.g. "squared error"; the label if "".
        unit: for tables and axes, e.g. "dB".
        higher_is_better: from the attacker's side. A table is sorted by it, and the
            headline of an event (``EventSpec.error``) must be an error: lower is
            better.
        compares: whether it reads inputs or targets.
    """

    label: ClassVar[str] = ""
    quantity: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool]
    compares: ClassVar[Literal["inputs", "targets"]] = "inputs"

    @property
    def key(self) -> str:
        """The name of its scores, with options that are not the defaults.

        For example ``psnr``, or ``my_lab.hit_rate(tolerance=0.05)``.
        """
        usual = default_options(type(self))
        record = describe(self)
        name = record.pop("name")
        chosen = [f"{n}={v}" for n, v in record.items() if usual.get(n, usual) != v]
        return f"{name}({', '.join(chosen)})" if chosen else name

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
