"""No constraint: the variable is the example itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.source import RelaxationSource

__all__ = ["Identity", "InUnits"]


@dataclass(frozen=True, eq=False)
class InUnits(Relaxation):
    """z is x in some units, flattened.

    Attributes:
        spec: of an example.
        units: of z.
    """

    onto: ClassVar[bool] = True
    spec: EventSpec
    units: Units

    @property
    def size(self) -> int:
        """The number d of reals in one example."""
        return self.spec.dimension

    def decode(self, z: Tensor) -> Tensor:
        """Return x = centre + scale · z."""
        return self.units.to_data(z.reshape(-1, *self.spec.shape))

    def encode(self, x: Tensor) -> Tensor:
        """Return z = (x − centre) / scale."""
        return self.units.from_data(x).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Identity(RelaxationSource):
    """x = z in the units of the attack; what leaves the range is clamped at the end."""

    def fit(self, problem: Problem, units: Units) -> Relaxation:
        """Return the identity for examples of this problem."""
        return InUnits(problem.spec, units)
