"""The forward model of several clients whose updates are combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from torch import Tensor

from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.tree import Tree, add, scale

if TYPE_CHECKING:
    from exhume.problem.defense import Aggregation
    from exhume.problem.task import Task

__all__ = ["Aggregate"]


@dataclass(frozen=True, eq=False)
class Aggregate(ObservationModel):
    """F(S) = Σ_k w_k h(F_k(S_k)) over the clients that did not drop out.

    Attributes:
        client: F of one client.
        release: h, the deterministic part of what one client releases.
        aggregation: cuts the batch into S_k and gives w_k.
    """

    client: ObservationModel
    release: Callable[[Mapping[str, Tensor]], Tree]
    aggregation: Aggregation

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return the weighted sum (autograd route)."""
        return self._sum(self.client.forward, task, candidate)

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return the weighted sum (``torch.func`` route)."""
        return self._sum(self.client.forward_func, task, candidate)

    @property
    def known_rate(self) -> float | None:
        """Step size of every client."""
        return self.client.known_rate

    @property
    def known_order(self) -> int | None:
        """Key of the order in which every client visits its examples."""
        return self.client.known_order

    def informed(self, rate: float | None, order: int | None) -> Aggregate:
        """Return the model with what is known of every client."""
        return replace(self, client=self.client.informed(rate, order))

    def hidden(self, batch_size: int) -> Mapping[str, tuple[int, ...]]:
        """Return what one client would hide with the whole batch."""
        return self.client.hidden(batch_size)

    def _sum(
        self,
        forward: Callable[[Task, Candidate], Tree],
        task: Task,
        candidate: Candidate,
    ) -> Tree:
        parts = self.aggregation.split(candidate)
        weights = self.aggregation.weights()
        terms = [
            scale(weight, self.release(forward(task, part)))
            for weight, part in zip(weights, parts, strict=True)
            if weight
        ]
        return reduce(add, terms)
