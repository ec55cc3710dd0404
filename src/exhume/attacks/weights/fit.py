"""The misfit of trained weights by candidates, as a function of their coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.unknowns import Unknowns
from exhume.attacks.weights.entrance import Entrance, Metric, joined
from exhume.formula import formula
from exhume.observations.stationarity import (
    combination,
    gradient_rows,
    relative_residual,
)
from exhume.problem.task import Task
from exhume.problem.tree import Tree, norm, subtract

__all__ = ["Fit", "least_multiplier_penalty"]

# What the other layers count beside the first one, if the first one is whitened.
_OTHERS = 0.1
# Weight of the penalty on multipliers that are too small, as published.
_MULTIPLIERS = 5.0


@formula(
    r"5 \sum_i (\lambda_{\min} - \lambda_i)_+^2",
    reference="Haim et al. (NeurIPS 2022), appendix B",
)
def least_multiplier_penalty(multipliers: Tensor, least: float) -> Tensor:
    """Return the penalty that keeps candidates active, a scalar.

    Args:
        multipliers: M λ_i, of the order of M times the multipliers of a sum.
        least: λ_min.
    """
    return _MULTIPLIERS * (least - multipliers).clamp_min(0).square().sum()


@dataclass(frozen=True, eq=False)
class Fit:
    """What candidates leave of Θ, with the parts of the attack that were chosen.

    Attributes:
        task: model with the trained weights, ReLUs smoothed or not.
        weights: Θ by name.
        unknowns: what the points of candidates stand for.
        entrance: the first layer, where it is dense.
        metric: of the first layer's misfit; None for the plain square norm.
        signed: multipliers belong to margins and are ≥ 0, else to outputs.
        box: weight of the range.
        least: λ_min.
        soft: margins are over all other classes at once, as weight decay leaves them.
    """

    task: Task
    weights: Tree
    unknowns: Unknowns
    entrance: Entrance | None
    metric: Metric | None
    signed: bool
    box: float
    least: float
    soft: bool = False

    @property
    def energy(self) -> float:
        """‖Θ‖²."""
        return float(norm(self.weights)) ** 2

    def inputs(self, points: Tensor) -> Tensor:
        """Return x = g(z), shape [M, *event], of points z [M, k]."""
        return self.unknowns.inputs([points])

    def combination(
        self, inputs: Tensor, targets: Tensor | None, multipliers: Tensor
    ) -> Tree:
        """Return Σ λ_i ∇m_i by name, differentiable."""
        return combination(
            self.task, inputs, targets, multipliers, self.weights, soft=self.soft
        )

    def rows(self, inputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return ∇m_i, one row each."""
        return gradient_rows(self.task, inputs, targets, self.weights, soft=self.soft)

    def residual(
        self, inputs: Tensor, targets: Tensor | None, multipliers: Tensor
    ) -> Tree:
        """Return Θ − Σ λ_i ∇m_i by name, differentiable."""
        found = self.combination(inputs, targets, multipliers)
        return subtract(self.weights, found)

    def misfit(self, residual: Tree) -> Tensor:
        """Return the relative misfit of a residual, a scalar that is 1 at Σ = 0."""
        if self.metric is None or self.entrance is None:
            total = torch.stack([t.square().sum() for t in residual.values()]).sum()
            return total / self.energy
        first = self.metric(joined(residual, self.entrance)).square().sum()
        value = first / self.metric.energy
        own = {self.entrance.weight, self.entrance.bias}
        others = [n for n in residual if n not in own]
        energy = sum(float(self.weights[n].square().sum()) for n in others)
        if energy > 0:
            rest = torch.stack([residual[n].square().sum() for n in others]).sum()
            value = value + _OTHERS * rest / energy
        return value

    def loss(
        self, points: Tensor, targets: Tensor | None, multipliers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the function that is minimised, and the misfit in it.

        Args:
            points: z of M candidates, shape [M, k].
            targets: their labels, None for multipliers of any sign.
            multipliers: M λ, as the published parametrisation has it.
        """
        inputs, count = self.inputs(points), len(points)
        misfit = self.misfit(self.residual(inputs, targets, multipliers / count))
        total = self.energy * misfit
        if self.box:
            total = total + self.box * self.unknowns.outside(inputs)
        if self.signed:
            total = total + least_multiplier_penalty(multipliers, self.least)
        return total, misfit

    def explained(
        self, inputs: Tensor, targets: Tensor | None
    ) -> tuple[float, Tensor, Tensor]:
        """Return the plain relative residual at the best λ, λ, and λ_i²‖∇m_i‖².

        Args:
            inputs: x, shape [M, *event].
            targets: labels, or None.
        """
        rows = self.rows(inputs, targets)
        left, found = relative_residual(rows, self.weights, any_sign=not self.signed)
        scores = found.square() * rows.square().sum(dim=1)
        return left, found, scores.reshape(len(inputs), -1).sum(dim=1)
