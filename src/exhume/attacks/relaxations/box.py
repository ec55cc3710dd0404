"""The example is a logistic function of the variable, so it stays inside its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.attacks.relaxations.identity import InUnits
from exhume.formula import formula
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.relaxation import Relaxation, Units
from exhume.problem.source import RelaxationSource

__all__ = ["Box", "Logistic", "logistic_box"]

# A value at the very edge of a box has no finite preimage; this share is kept inside.
_EDGE = 1e-4


@formula(
    r"x = \ell + (h - \ell)\, \sigma(z),\quad \sigma(z) = 1 / (1 + e^{-z})",
    reference="change of variables (logistic)",
)
def logistic_box(z: Tensor, low: float, high: float) -> Tensor:
    """Map the real line onto an open interval.

    Args:
        z: any shape.
        low: ℓ, lower end.
        high: h > ℓ, upper end.
    """
    return low + (high - low) * torch.sigmoid(z)


@dataclass(frozen=True, eq=False)
class Logistic(Relaxation):
    """x = low + (high − low) σ(z) stays within the range by construction.

    Attributes:
        spec: of an example, with a range.
    """

    onto: ClassVar[bool] = True
    spec: EventSpec

    @property
    def size(self) -> int:
        """The number d of reals in one example."""
        return self.spec.dimension

    def decode(self, z: Tensor) -> Tensor:
        """Return x = low + (high − low) σ(z)."""
        low, high = self._ends
        return logistic_box(z.reshape(-1, *self.spec.shape), low, high)

    def encode(self, x: Tensor) -> Tensor:
        """Return the logit of x; values at the edge move a ten-thousandth inside."""
        low, high = self._ends
        share = (x - low) / (high - low)
        return torch.logit(share.clamp(_EDGE, 1 - _EDGE)).flatten(1)

    @property
    def _ends(self) -> tuple[float, float]:
        assert self.spec.low is not None
        assert self.spec.high is not None
        return self.spec.low, self.spec.high


@dataclass(frozen=True, kw_only=True)
class Box(RelaxationSource):
    """x = ℓ + (h − ℓ) σ(z); the identity where an example has no range."""

    def fit(self, problem: Problem, units: Units) -> Relaxation:
        """Return the relaxation for the range of this problem."""
        if problem.spec.low is None:
            return InUnits(problem.spec, units)
        return Logistic(problem.spec)
