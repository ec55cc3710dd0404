"""What every preset of the engine is: a design, and the driver that carries it out."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from exhume.attacks.engine.driver import Design, reconstruct
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import Reconstruction

__all__ = ["MatchingAttack"]


class MatchingAttack(Attack):
    """An optimisation attack that matches the observation; presets choose the parts."""

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.LABELS,
            Fact.LEARNING_RATE,
            Fact.BATCH_ORDER,
            Fact.DEFENSE,
            Fact.PRIOR,
            Fact.PUBLIC_DATA,
        }
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset({"gradient", "update"})

    @abstractmethod
    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Reconstruct from drawn starts."""
        return self.run_from(problem, key, None)

    def run_from(
        self, problem: Problem, key: int, inputs: Tensor | None
    ) -> Reconstruction:
        """Reconstruct with an explicit first start, shape [B, *event]."""
        return reconstruct(problem, self.design(problem), key, inputs)

    def objective(self, problem: Problem, inputs: Tensor, targets: Tensor) -> float:
        """Return the function that the design minimises, at a candidate."""
        return self.design(problem).objective.value(inputs, targets)
