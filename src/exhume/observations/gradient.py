"""The full-batch mean gradient O = ∇_Θ L(Θ; S)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient(ObservationModel):
    """One full-batch gradient, the mean over the batch, in the task's own mode.

    F(S) = (1/B) Σᵢ ∇_Θ ℓ(f(xᵢ; Θ), yᵢ), a *descent* direction has the opposite sign.
    In train mode the examples are coupled through the batch statistics.
    """

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return ∇_Θ L by name (autograd route)."""
        return task.gradient(candidate.inputs, candidate.targets)

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return ∇_Θ L by name (``torch.func`` route)."""
        return task.gradient_func(candidate.inputs, candidate.targets)

    def forward_at(
        self, task: Task, candidate: Candidate, parameters: Mapping[str, Tensor]
    ) -> Tree:
        """Return ∇_Θ L at other weights by name (``torch.func`` route)."""
        return task.gradient_func(candidate.inputs, candidate.targets, parameters)
