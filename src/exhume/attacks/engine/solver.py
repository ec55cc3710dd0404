"""What a first-order solver is: a step rule for a list of variables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Evaluate", "Solver", "Step"]

#: fills ``.grad`` of every variable and returns the value, a scalar
Evaluate = Callable[[], Tensor]
#: one iteration: its number and the function to evaluate
Step = Callable[[int, Evaluate], None]


class Solver(ABC):
    """A step rule; leaves are frozen dataclasses of numbers."""

    @abstractmethod
    def begin(
        self, variables: list[Tensor], iterations: int, generator: torch.Generator
    ) -> Step:
        """Return the step function of one run, which changes the variables in place.

        The first evaluation of a step is at the current iterate.

        Args:
            variables: leaves that require gradients.
            iterations: N, which schedules may depend on.
            generator: randomness of the run.
        """

    def settled_after(self, iterations: int) -> int:
        """Return the iteration from which a standstill ends a run."""
        del iterations
        return 0
