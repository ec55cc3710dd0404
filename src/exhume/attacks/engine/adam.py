"""Adam, plain or on the sign of the gradient, with a schedule and optional noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exhume.attacks.engine.solver import Evaluate, Solver, Step
from exhume.formula import formula

__all__ = [
    "Adam",
    "Schedule",
    "cosine_decay",
    "last_decay",
    "learning_rate",
    "step_decay",
]

Schedule = Literal["constant", "steps", "cosine"]

# 3/8, 5/8 and 7/8 of a run, as the authors' code writes them: rounding follows it.
_STEPS = (2.667, 1.6, 1.142)


@formula(
    r"\eta_k = \eta\, 10^{-\#\{m \in \{3/8, 5/8, 7/8\} : k \ge m N\}}",
    reference="Geiping et al., NeurIPS 2020, appendix",
)
def step_decay(iteration: int, iterations: int) -> float:
    """Return the factor of the learning rate that falls tenfold three times.

    Args:
        iteration: k, from 0.
        iterations: N.
    """
    return 0.1 ** sum(iteration >= iterations // step for step in _STEPS)


@formula(
    r"\eta_k = \eta \min\{(k+1)/w, 1\}\, \tfrac12 (1 + \cos(\pi k / N))",
    reference="Loshchilov and Hutter, ICLR 2017; warm-up as in Yin et al., CVPR 2021",
)
def cosine_decay(iteration: int, iterations: int, warmup: int) -> float:
    """Return the factor of a learning rate that rises linearly, then falls to zero.

    Args:
        iteration: k, from 0.
        iterations: N.
        warmup: w, iterations of the rise.
    """
    rise = min((iteration + 1) / max(warmup, 1), 1.0)
    return rise * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


def learning_rate(
    schedule: Schedule, iteration: int, iterations: int, warmup: int
) -> float:
    """Return the factor of the learning rate at an iteration."""
    if schedule == "steps":
        return step_decay(iteration, iterations)
    if schedule == "cosine":
        return cosine_decay(iteration, iterations, warmup)
    return min((iteration + 1) / max(warmup, 1), 1.0)


def last_decay(schedule: Schedule, iterations: int) -> int:
    """Return the iteration after which a standstill is final, as far as one can tell.

    Before it a smaller learning rate is still to come, which ends most standstills.
    """
    if schedule == "steps":
        return int(iterations // min(_STEPS))
    # The cosine has no last step; in its last eighth the rate is below 4 %.
    return iterations * 7 // 8 if schedule == "cosine" else 0


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
