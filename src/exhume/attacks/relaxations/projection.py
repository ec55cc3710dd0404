"""The variable is the example, clamped to the range after every step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from exhume.attacks.relaxations.identity import InUnits
from exhume.problem.knowledge import Problem
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.source import RelaxationSource

__all__ = ["Clamped", "Projection"]


@dataclass(frozen=True, eq=False)
class Clamped(InUnits):
    """z is x in some units, and feasible where x is in the range of its event."""

    def project(self, z: Tensor) -> Tensor:
        """Clamp z to the range of an example."""
        low, high = z.new_tensor(self.spec.low), z.new_tensor(self.spec.high)
        x = z.reshape(-1, *self.spec.shape)
        inside = x.clamp(self.units.from_data(low), self.units.from_data(high))
        return inside.reshape(z.shape)


@dataclass(frozen=True, kw_only=True)
class Projection(RelaxationSource):
    """x = z with ℓ ≤ x ≤ h; the identity where an example has no range."""

    def fit(self, problem: Problem, units: Units) -> Relaxation:
        """Return the relaxation for the range of this problem."""
        bounded = problem.spec.low is not None
        return (Clamped if bounded else InUnits)(problem.spec, units)
