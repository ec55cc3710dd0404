"""What a bound is: a number no attack can beat, or the reason why there is none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["Bound", "BoundValue", "NotApplicable"]


@dataclass(frozen=True)
class NotApplicable:
    """A bound that says nothing here, and why, in one sentence."""

    reason: str


@dataclass(frozen=True)
class BoundValue:
    """A lower bound on E‖x̂ − x‖², summed over all unknowns of the batch.

    Attributes:
        name: registered name of the bound.
        total: the bound, in squared units of the data.
        standard_error: Monte-Carlo standard error of ``total``.
        unknowns: q = B·d, the number of reals that are bounded together.
        batch_size: B.
        assumptions: under which it holds, one sentence each.
        reference: where it was proved.
        details: further numbers by name (a weaker bound, the number of draws).
    """

    name: str
    total: float
    standard_error: float
    unknowns: int
    batch_size: int
    assumptions: tuple[str, ...]
    reference: str
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def mse(self) -> float:
        """The bound per coordinate, comparable with a mean squared error."""
        return self.total / self.unknowns

    @property
    def mse_standard_error(self) -> float:
        """Standard error of :attr:`mse`."""
        return self.standard_error / self.unknowns


class Bound(ABC):
    """A lower bound on reconstruction error; leaves are frozen dataclasses.

    Attributes:
        bibtex: the entries to cite, or "".
    """

    bibtex: ClassVar[str] = ""

    @abstractmethod
    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | NotApplicable:
        """Evaluate the bound for a world's task, mechanism, labels and batch size.

        The private inputs are not used: the bound is an average over the prior.

        Args:
            world: the evaluator's side.
            prior: density of one example; the world's own if None.
            key: randomness of the Monte-Carlo average.
        """
