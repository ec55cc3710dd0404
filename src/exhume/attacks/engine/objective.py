"""The function that an optimisation attack minimises: discrepancy plus priors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.discrepancy import (
    Discrepancy,
    DiscrepancyName,
    make_discrepancy,
)
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.prior import Density
from exhume.problem.task import Task

__all__ = ["Objective", "make_objective"]


@dataclass(frozen=True, eq=False)
class Objective:
    """w·d(F(x, y), O) − Σ log p(x): deterministic, the same for guess and truth.

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

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the objective, a scalar, differentiable in inputs and targets."""
        update = self.model.forward(self.task, Candidate(inputs, targets))
        value = self.weight * self.discrepancy(update)
        for prior in self.priors:
            value = value + prior.energy(inputs)
        return value

    def value(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the objective of a candidate as a number, in the task's precision."""
        dtype = self.task.dtype
        if targets.is_floating_point():
            targets = targets.to(dtype)
        with torch.no_grad():
            return float(self(inputs.to(dtype), targets))

    @property
    def floor(self) -> float:
        """Below this value there is nothing left to fit."""
        return 0.0 if self.priors else self.weight * self.discrepancy.floor


def make_objective(
    problem: Problem,
    discrepancy: DiscrepancyName,
    *,
    weight: float = 1.0,
    priors: tuple[Density, ...] = (),
) -> Objective:
    """Assemble the objective from what a problem tells.

    Args:
        problem: with weights and local schedule; its law is used if it is known.
        discrepancy: a name in ``DiscrepancyName``.
        weight: of the discrepancy.
        priors: densities of the inputs.
    """
    task: Task = problem.require(Fact.WEIGHTS)
    law = None if problem.law is UNKNOWN else problem.law
    return Objective(
        task=task,
        model=problem.require(Fact.LOCAL_SCHEDULE),
        discrepancy=make_discrepancy(discrepancy, problem.observed, law, task.dtype),
        weight=weight,
        priors=priors,
    )
