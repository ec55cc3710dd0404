"""Priors of published attacks in their own units: total variation and energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.attacks.relaxations.units import standard_units
from exhume.priors.total_variation import TotalVariationDensity
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.prior import Density
from exhume.problem.relaxation import Units

__all__ = ["EuclideanNorm", "mean_total_variation"]

# Jumps below this share of the range count as their square.
_SMOOTHING = 1e-3


def mean_total_variation(
    problem: Problem, weight: float
) -> tuple[tuple[Density, ...], tuple[str, ...]]:
    """Return α · (mean over entries of the total variation in normalised units).

    Args:
        problem: with the batch size, for images.
        weight: α; 0 leaves the prior out.

    Returns:
        the prior, or none; and a note where the data have no neighbours.
    """
    if weight == 0:
        return (), ()
    if problem.spec.grid is None:
        why = f"a {problem.spec.kind} is no grid of pixels"
        return (), (f"Total variation is left out: {why}.",)
    units = standard_units(problem.require(Fact.WEIGHTS), problem.spec)
    entries = problem.require(Fact.BATCH_SIZE) * problem.spec.dimension
    # Channels with different scales share one weight: their mean.
    scale = 1.0 if units.scale is None else float(units.scale.mean())
    prior = TotalVariationDensity(
        weight=weight / (entries * scale),
        smoothing=_SMOOTHING * (problem.spec.peak or 1.0),
    )
    return (prior,), ()


@dataclass(frozen=True, eq=False)
class EuclideanNorm(Density):
    """−log p(x) = w ‖x‖₂ in given units.

    Attributes:
        weight: w.
        units: in which the norm is taken.
    """

    name: ClassVar[str] = "euclidean-norm"
    weight: float
    units: Units

    def energy(self, inputs: Tensor) -> Tensor:
        """Return w ‖x‖₂ over the whole batch, a scalar."""
        return self.weight * torch.linalg.vector_norm(self.units.from_data(inputs))
