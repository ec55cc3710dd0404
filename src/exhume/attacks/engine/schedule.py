"""Learning rates over a run."""

from __future__ import annotations

import math
from typing import Literal

from exhume.formula import formula

__all__ = ["Schedule", "cosine_decay", "last_decay", "learning_rate", "step_decay"]

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
