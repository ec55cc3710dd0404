"""Adam, plain or on the sign of the gradient, with a schedule and optional noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.schedule import Schedule, last_decay, learning_rate
from exhume.attacks.engine.solver import Evaluate, Solver, Step

__all__ = ["Adam"]


@dataclass(frozen=True, kw_only=True)
class Adam(Solver):
    """Kingma and Ba (ICLR 2015), default moments.

    Attributes:
        step_size: η, in the units of the variables.
        schedule: ``constant``, ``steps`` or ``cosine``.
        signed: use the sign of the gradient (Geiping et al. 2020).
        warmup: iterations of a linear rise of η.
        noise: add η·noise·N(0, 1) after every step (Yin et al. 2021).
    """

    step_size: float = 0.1
    schedule: Schedule = "constant"
    signed: bool = False
    warmup: int = 0
    noise: float = 0.0

    def begin(
        self, variables: list[Tensor], iterations: int, generator: torch.Generator
    ) -> Step:
        """Return the step function of one run."""
        optimiser = torch.optim.Adam(variables, lr=self.step_size)

        def step(iteration: int, evaluate: Evaluate) -> None:
            factor = learning_rate(self.schedule, iteration, iterations, self.warmup)
            rate = self.step_size * factor
            optimiser.param_groups[0]["lr"] = rate
            evaluate()
            if self.signed:
                for variable in variables:
                    assert variable.grad is not None
                    variable.grad.sign_()
            optimiser.step()
            if self.noise > 0:
                _shake(variables[0], rate * self.noise, generator)

        return step

    def settled_after(self, iterations: int) -> int:
        """Return the iteration of the last decay of the learning rate."""
        return last_decay(self.schedule, iterations)


def _shake(variable: Tensor, size: float, generator: torch.Generator) -> None:
    draw = torch.randn(variable.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        variable.add_(draw.to(variable), alpha=size)
