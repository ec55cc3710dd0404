"""Trained weights alone, O = Θ_T: what a published checkpoint shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.observations.stationarity import (
    combination,
    decay_residual,
    gradient_rows,
    relative_residual,
)
from exhume.observations.training import (
    Trained,
    check_descent,
    check_not_negative,
    stationarity,
    train,
)
from exhume.problem.observation import Candidate, ObservationKind, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, subtract

__all__ = ["MULTIPLIERS", "Weights"]

#: name of the multipliers λ in ``Candidate.nuisance``
MULTIPLIERS = "multipliers"


@dataclass(frozen=True, kw_only=True)
class Weights(ObservationModel):
    """Train from the weights of the task to a low loss and share Θ_T alone.

    The attacker holds the model with Θ_T; Θ_0 is not known. What it tells is implicit:
    a homogeneous network trained for long on separable data converges in direction to

    Θ = Σ_i λ_i ∇_Θ m_i(Θ), λ ≥ 0,

    with the margins m_i = y_i f(x_i), or f_y(x_i) − max_{j≠y} f_j(x_i) (Lyu and Li,
    2020); with weight decay ω, any network that was trained to the end satisfies
    Θ = −∇L(Θ)/ω. :meth:`residual` is what is left of Θ.

    Attributes:
        target_loss: train until L ≤ target; with weight decay until
            ‖∇L + ωΘ‖ ≤ target · ω‖Θ‖.
        iterations: at most so many full-batch steps.
        rate: step size η, divided by the loss where that vanishes exponentially.
        weight_decay: ω ≥ 0.
        momentum: of the steps, in [0, 1).

    Raises:
        InvalidInput: an option is out of range.
    """

    target_loss: float = 1e-8
    iterations: int = 20_000
    rate: float = 0.05
    weight_decay: float = 0.0
    momentum: float = 0.0

    kind: ClassVar[ObservationKind] = "weights"
    opaque: ClassVar[str | None] = (
        "The weights were trained to the end: they have no derivative in the examples "
        "that one could take, so no bound on their information is known."
    )

    def __post_init__(self) -> None:
        check_not_negative(target_loss=self.target_loss, weight_decay=self.weight_decay)
        check_descent(self.iterations, self.rate, self.momentum)

    def train(self, task: Task, candidate: Candidate) -> Trained:
        """Train as the client does; the loss may stay above the target.

        Raises:
            InvalidInput: the loss diverges.
        """
        return train(
            task,
            candidate,
            target_loss=self.target_loss,
            iterations=self.iterations,
            rate=self.rate,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
        )

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return Θ_T, without a derivative."""
        return self.train(task, candidate).weights

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return Θ_T, without a derivative; not for ``torch.func`` transforms."""
        return self.forward(task, candidate)

    def task_seen(self, task: Task, observed: Mapping[str, Tensor]) -> Task:
        """Return the task with the trained weights, which the attacker holds."""
        seen = task.to(task.dtype)
        with torch.no_grad():
            for name, parameter in seen.parameters().items():
                parameter.copy_(observed[name])
        return seen

    def left(self, task: Task, candidate: Candidate, observed: Tree) -> float:
        """Return what training left at Θ: L, or with weight decay ‖∇L + ωΘ‖ / (ω‖Θ‖).

        Where it is not small, the equation that attacks solve need not hold.

        Args:
            task: any weights; those of ``observed`` count.
            candidate: the examples that were trained on.
            observed: Θ by name.
        """
        inputs, targets = candidate.inputs, candidate.targets
        if self.weight_decay:
            gradient = task.gradient(inputs, targets, observed)
            return stationarity(observed, gradient, self.weight_decay)
        with torch.no_grad():
            return float(task.loss_value(inputs, targets, observed))

    def residual(self, task: Task, candidate: Candidate, observed: Tree) -> Tree:
        """Return what examples leave of Θ: Θ − Σ λ_i ∇m_i, or Θ + ∇L/ω.

        Args:
            task: any weights; those of ``observed`` count.
            candidate: examples; λ under the name ``multipliers``, shape [M]. Without
                them, the best λ ≥ 0 is taken, or with weight decay that of the loss.
            observed: Θ by name.
        """
        inputs, targets = candidate.inputs, candidate.targets
        if self.weight_decay and MULTIPLIERS not in candidate.nuisance:
            return decay_residual(task, inputs, targets, observed, self.weight_decay)
        found = self._multipliers(task, candidate, observed)
        soft = bool(self.weight_decay)
        told = combination(task, inputs, targets, found, observed, soft=soft)
        return subtract(observed, told)

    def _multipliers(self, task: Task, candidate: Candidate, observed: Tree) -> Tensor:
        given = candidate.nuisance.get(MULTIPLIERS)
        if given is not None:
            return given
        rows = gradient_rows(task, candidate.inputs, candidate.targets, observed)
        return relative_residual(rows, observed)[1]

    def jvp(self, task: Task, candidate: Candidate, tangent: Tensor) -> Tree:
        """Raise: there is no derivative.

        Raises:
            InvalidInput: always, with the reason.
        """
        del task, candidate, tangent
        raise InvalidInput(str(self.opaque))

    def vjp(self, task: Task, candidate: Candidate, cotangent: Tree) -> Tensor:
        """Raise: there is no derivative.

        Raises:
            InvalidInput: always, with the reason.
        """
        del task, candidate, cotangent
        raise InvalidInput(str(self.opaque))
