"""The function that an optimisation attack minimises: discrepancy plus priors.

Among the priors are those of published attacks, in their own units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.attacks.engine.discrepancy import (
    Discrepancy,
    make_discrepancy,
)
from exhume.priors.total_variation import TotalVariationDensity
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.prior import Density
from exhume.problem.relaxation import Units
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["EuclideanNorm", "Objective", "make_objective", "mean_total_variation"]

# Jumps below this share of the range count as their square.
_SMOOTHING = 1e-3


@dataclass(frozen=True, eq=False)
class Objective:
    """w·d(F(x, y), O) − Σ log p(x): deterministic, the same for guess and truth.

    What else is not known (the step size of a client, say) is minimised together with
    x while the attack runs, and at given inputs by ``settle``, so that the objective
    remains a function of the candidate alone; a subclass overrides the methods below.

    Attributes:
        task: model with weights.
        model: observation model F.
        discrepancy: d(·, O), with the declared law inside.
        weight: w.
        priors: densities, each with its weight.
    """

    task: Task
    model: ObservationModel
    discrepancy: Discrepancy
    weight: float = 1.0
    priors: tuple[Density, ...] = ()

    def begin(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return where the further unknowns start, given a start of the inputs."""
        return self.settle(inputs, targets)

    def settle(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the further unknowns that minimise the objective at given inputs."""
        del inputs, targets
        return ()

    def simulate(
        self, inputs: Tensor, targets: Tensor, unknowns: Sequence[Tensor]
    ) -> Tree:
        """Return what a candidate would have made the client share."""
        del unknowns
        return self.model.forward(self.task, Candidate(inputs, targets))

    def penalty(self, unknowns: Sequence[Tensor]) -> Tensor | float:
        """Return −log p of the further unknowns, up to a constant."""
        del unknowns
        return 0.0

    def __call__(
        self, inputs: Tensor, targets: Tensor, unknowns: Sequence[Tensor] = ()
    ) -> Tensor:
        """Return the objective, a scalar, differentiable in all its arguments."""
        update = self.simulate(inputs, targets, unknowns)
        value = self.weight * self.discrepancy(update)
        for prior in self.priors:
            value = value + prior.energy(inputs)
        return value + self.penalty(unknowns) if unknowns else value

    def value(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the objective of a candidate as a number, in the task's precision."""
        dtype = self.task.dtype
        inputs = inputs.to(dtype)
        if targets.is_floating_point():
            targets = targets.to(dtype)
        with torch.no_grad():
            return float(self(inputs, targets, self.settle(inputs, targets)))

    @property
    def floor(self) -> float:
        """Below this value there is nothing left to fit."""
        return 0.0 if self.priors else self.weight * self.discrepancy.floor


def make_objective(
    problem: Problem,
    discrepancy: str,
    *,
    weight: float = 1.0,
    priors: tuple[Density, ...] = (),
    kind: type[Objective] = Objective,
) -> Objective:
    """Assemble the objective from what a problem tells.

    Args:
        problem: with weights and local schedule; its law is used if it is known.
        discrepancy: a name in ``DiscrepancyName``, or ``module:function``.
        weight: of the discrepancy.
        priors: densities of the inputs.
        kind: of the objective; a subclass has further unknowns.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    law = None if problem.law is UNKNOWN else problem.law
    return kind(
        task=task,
        model=problem.require(Fact.LOCAL_SCHEDULE),
        discrepancy=make_discrepancy(discrepancy, problem.observed, law, task.dtype),
        weight=weight,
        priors=priors,
    )


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
    units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
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
