"""Find the strength at which a defense costs a given utility, from few measurements.

Every measurement is a training, so the budgets of a family share them, and they are
asked for in rounds that run in parallel (which the root finders of scipy cannot do).
Which strengths a round asks for depends on the measurements so far and on nothing else:
an interrupted search takes the same way again, through what is stored already.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from exhume.formula import formula

__all__ = ["Settled", "Step", "mean_interval", "next_position", "rounds", "settle"]

#: the first round: both ends, and enough between them to see where the loss rises
FIRST_ROUND = (0.0, 1 / 3, 2 / 3, 1.0)
#: a bracket shrinks at least by this part, however flat the curve is at one end
_LEAST_CUT = 0.2
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Step:
    """One measured strength.

    Attributes:
        position: in [0, 1], weak to strong.
        strength: the value of the option.
        losses: utility lost, one per seed; infinite where training diverged.
    """

    position: float
    strength: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return fmean(self.losses)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean, see :func:`mean_interval`."""
        return mean_interval(self.losses)


@dataclass(frozen=True)
class Settled:
    """What became of one budget.

    Attributes:
        budget: utility loss asked for.
        step: the strength that was chosen, or None.
        within: its loss is the budget, within the tolerance.
        reason: one sentence if not within, else "".
    """

    budget: float
    step: Step | None
    within: bool
    reason: str = ""


@formula(
    r"\bar u \pm t_{n-1,\,0.975}\; s / \sqrt n",
    reference="Student, Biometrika 1908",
)
def mean_interval(values: Sequence[float], tests: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of a mean over seeds, by Student's t.

    Args:
        values: one per seed; fewer than two leave the interval unbounded.
        tests: intervals that hold at once, by Bonferroni.
    """
    middle, n = fmean(values), len(values)
    if n < 2 or not math.isfinite(middle):
        return -math.inf, math.inf
    spread = math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1))
    half = _student((1 - _CONFIDENCE) / (2 * tests), n - 1) * spread / math.sqrt(n)
    return middle - half, middle + half


@lru_cache(maxsize=256)
def _student(tail: float, freedom: int) -> float:
    """Return the quantile of Student's t that leaves a tail above it."""
    from scipy.stats import t

    return float(t.isf(tail, freedom))


def _bracket(steps: Sequence[Step], budget: float) -> tuple[Step, Step] | None:
    """Return the first neighbours between which the loss rises past the budget."""
    ordered = sorted(steps, key=lambda s: s.position)
    for low, high in itertools.pairwise(ordered):
        if low.loss < budget <= high.loss:
            return low, high
    return None


@formula(
    r"p = p_0 + (p_1 - p_0)\,\mathrm{clip}\!\left("
    r"\frac{u - \ell_0}{\ell_1 - \ell_0},\, c,\, 1 - c\right)",
    reference="false position, with the cut kept away from the ends",
)
def next_position(low: Step, high: Step, budget: float) -> float:
    """Cut a bracket where a straight line meets the budget, not too near an end.

    Args:
        low: measured, loss below the budget.
        high: measured, loss at least the budget; infinite if training diverged.
        budget: utility loss u.

    Returns:
        a position between the two.
    """
    share = 0.5
    if math.isfinite(high.loss) and math.isfinite(low.loss):
        share = (budget - low.loss) / (high.loss - low.loss)
    share = min(max(share, _LEAST_CUT), 1 - _LEAST_CUT)
    return low.position + share * (high.position - low.position)


def rounds(
    steps: Sequence[Step], budgets: Sequence[float], tolerance: float, most: int
) -> list[float]:
    """Say which positions to measure next; none when the search has ended.

    Args:
        steps: everything measured so far, each strength once.
        budgets: utility losses to meet.
        tolerance: how near is equal.
        most: strengths to measure at most, the first round included.
    """
    if not steps:
        return list(FIRST_ROUND) if most >= len(FIRST_ROUND) else [0.0, 1.0]
    wanted: dict[float, None] = {}
    for budget in budgets:
        if _nearest(steps, budget, tolerance) is not None:
            continue
        bracket = _bracket(steps, budget)
        if bracket is not None:
            wanted.setdefault(next_position(*bracket, budget))
    return list(wanted)[: most - len(steps)]


def _nearest(steps: Sequence[Step], budget: float, tolerance: float) -> Step | None:
    """Return the step of which the loss is nearest to the budget, within tolerance."""
    near = [s for s in steps if abs(s.loss - budget) <= tolerance]
    return min(near, key=lambda s: (abs(s.loss - budget), s.position), default=None)


def settle(steps: Sequence[Step], budget: float, tolerance: float) -> Settled:
    """Choose the strength for a budget, or say why there is none.

    A family that cannot lose the budget is represented by the step that loses most, one
    that always loses more by none.
    """
    chosen = _nearest(steps, budget, tolerance)
    if chosen is not None:
        return Settled(budget, chosen, True)
    most = max(steps, key=lambda s: (s.loss, -s.position))
    if most.loss < budget:
        return Settled(budget, most, False, "the budget is not reached")
    below = [s for s in steps if s.loss < budget]
    if not below:
        return Settled(budget, None, False, "even its weakest costs more")
    step = max(below, key=lambda s: (s.loss, -s.position))
    why = "no strength within the tolerance was found"
    return Settled(budget, step, False, why)
