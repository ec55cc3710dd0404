"""The function that an optimisation attack minimises: discrepancy plus priors."""

from __future__ import annotations

from collections.abc import Sequence
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
from exhume.problem.tree import Tree

__all__ = ["Objective", "make_objective"]


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
    discrepancy: DiscrepancyName,
    *,
    weight: float = 1.0,
    priors: tuple[Density, ...] = (),
    kind: type[Objective] = Objective,
) -> Objective:
    """Assemble the objective from what a problem tells.

    Args:
        problem: with weights and local schedule; its law is used if it is known.
        discrepancy: a name in ``DiscrepancyName``.
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
