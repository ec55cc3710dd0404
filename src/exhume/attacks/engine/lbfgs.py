"""Limited-memory BFGS, with or without a line search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.solver import Evaluate, Solver, Step

__all__ = ["LBFGS"]


@dataclass(frozen=True, kw_only=True)
class LBFGS(Solver):
    """Liu and Nocedal (1989), in PyTorch's implementation.

    Attributes:
        step_size: η, the length that is tried first.
        history: pairs that are kept.
        inner_iterations: quasi-Newton steps per iteration.
        line_search: strong Wolfe conditions; without it every step is taken.
    """

    step_size: float = 1.0
    history: int = 100
    inner_iterations: int = 20
    line_search: bool = True

    def begin(
        self, variables: list[Tensor], iterations: int, generator: torch.Generator
    ) -> Step:
        """Return the step function of one run."""
        del iterations, generator
        optimiser = torch.optim.LBFGS(
            variables,
            lr=self.step_size,
            max_iter=self.inner_iterations,
            history_size=self.history,
            # Absolute tolerances mean nothing for objectives of unknown scale; a
            # standstill is seen by the driver.
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )

        def step(iteration: int, evaluate: Evaluate) -> None:
            del iteration
            optimiser.step(evaluate)  # pyright: ignore[reportArgumentType]

        return step
