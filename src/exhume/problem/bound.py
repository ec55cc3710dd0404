"""What a bound is: a number that attacks cannot beat, or why there is none."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from exhume.member import Member
from exhume.problem.prior import Density
from exhume.problem.world import World

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Binds", "Bound", "BoundValue", "NotApplicable", "RiskValue"]


class Binds(StrEnum):
    """Whom a statement binds; the value says it in words."""

    EVERY_ATTACK = "every attack"
    UNBIASED_ATTACKS = "unbiased attacks only: any attack with a prior may beat it"
    NO_PRIOR = "attacks without a prior only"
    KNOWN_CHANCE = "attacks whose knowledge the chance κ includes, and no others"
    NOBODY = "nobody strictly: it is an approximation"


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
        standard_error: Monte-Carlo error of ``total``: ± 1.96 of it is a 95 % interval,
            also where draws are few (Student 1908).
        unknowns: q = B·d, the number of reals that are bounded together.
        batch_size: B.
        assumptions: under which it holds, one sentence each.
        reference: where it was proved.
        binds: whom it binds; only a bound for every attack is compared with attacks.
        details: further numbers by name (a weaker bound, the number of draws).
        per_coordinate: the same for every coordinate, shape [B, *event], summing to
            ``total`` up to Monte-Carlo correction; None if the bound knows sums only.
    """

    name: str
    total: float
    standard_error: float
    unknowns: int
    batch_size: int
    assumptions: tuple[str, ...]
    reference: str
    binds: Binds = Binds.EVERY_ATTACK
    details: Mapping[str, float] = field(default_factory=dict)
    per_coordinate: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def relative_error(self) -> float:
        """The standard error over the bound; infinite if the bound is 0."""
        if self.total > 0:
            return self.standard_error / self.total
        return math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of :attr:`total`, of its Monte-Carlo error alone."""
        return (
            self.total - 1.96 * self.standard_error,
            self.total + 1.96 * self.standard_error,
        )

    @property
    def per_example(self) -> tuple[float, ...]:
        """The bound on each example's mean squared error; empty if it is not known."""
        if self.per_coordinate is None:
            return ()
        return tuple(self.per_coordinate.flatten(1).mean(dim=1).tolist())

    @property
    def mse(self) -> float:
        """The bound per coordinate, comparable with a mean squared error."""
        return self.total / self.unknowns

    @property
    def mse_standard_error(self) -> float:
        """Standard error of :attr:`mse`."""
        return self.standard_error / self.unknowns


@dataclass(frozen=True)
class RiskValue:
    """A bound on an attacker's success that is not a squared error.

    Attributes:
        name: registered name of the bound.
        quantity: what is bounded, in words, e.g. ``largest probability of success``.
        value: the bound, in the units of ``quantity``.
        standard_error: Monte-Carlo standard error of ``value``; 0 if it is exact.
        assumptions: under which it holds, one sentence each.
        reference: where it was proved.
        binds: whom it binds.
        details: further numbers by name (ε, δ, the chance level κ).
    """

    name: str
    quantity: str
    value: float
    standard_error: float
    assumptions: tuple[str, ...]
    reference: str
    binds: Binds = Binds.EVERY_ATTACK
    details: Mapping[str, float] = field(default_factory=dict)


class Bound(Member, ABC):
    """A bound on reconstruction error or success; leaves are frozen dataclasses."""

    @abstractmethod
    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | RiskValue | NotApplicable:
        """Evaluate the bound for a world's task, mechanism, labels and batch size.

        The private inputs are not used: the bound is an average over the prior.

        Args:
            world: the evaluator's side.
            prior: density of one example; the world's own if None.
            key: randomness of the Monte-Carlo average.
        """
