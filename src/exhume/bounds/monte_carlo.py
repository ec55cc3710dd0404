"""Averages over draws: how many, their bias, an error that covers, and their tail."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from exhume.bounds.inequalities import trace_bound
from exhume.formula import formula
from exhume.problem.bound import BoundValue, NotApplicable

__all__ = [
    "average",
    "average_until_settled",
    "covering",
    "jackknife",
    "jackknifed_diagonal",
    "jackknifed_trace_bound",
    "largest_shape",
    "pareto_shape",
]

#: of an interval of ± 1.96 standard errors
_COVERAGE = 0.95
# Draws that an error is believed from, unless nothing varies; and draws that are spent
# to make it small, unless more are asked for.
_FEWEST, _MOST = 8, 64
_SMALL = 0.05  # relative standard error at which an average has settled
_NOTHING = 1e-6  # relative standard error that rounding leaves of a constant
# Relative standard error from which an average says nothing.
_UNSETTLED = 0.5
_FEWEST_IN_TAIL = 5


def average_until_settled(
    draws: int, estimate: Callable[[int], BoundValue]
) -> BoundValue | NotApplicable:
    """Double the number of draws until the relative error of an average is small.

    Args:
        draws: number to begin with.
        estimate: number of draws → the bound, which says in its details how many draws
            there were.

    Returns:
        The bound, or that its error is half of it or more.
    """
    count = draws
    while True:
        value = estimate(count)
        small = value.relative_error <= _SMALL and count >= _FEWEST
        constant = value.relative_error <= _NOTHING
        if small or constant or value.details["draws"] < count or 2 * count > _MOST:
            break
        count *= 2
    if not value.relative_error < _UNSETTLED:
        return NotApplicable(
            f"the average over {value.details['draws']:.0f} points has not settled: "
            f"the bound is {value.total:.2g} ± {value.standard_error:.2g}; raise the "
            f"option draws"
        )
    return value


@formula(
    r"s \cdot t_{n-1}(0.975) / z(0.975)",
    reference="Student 1908",
)
def covering(error: float, count: int) -> float:
    """Widen a standard error from few draws, so that ± 1.96 of it cover 95 %.

    Args:
        error: s, of a mean of n draws or pseudo-values.
        count: n ≥ 2.
    """
    from scipy.stats import norm, t

    tail = (1 + _COVERAGE) / 2
    return error * float(t.ppf(tail, count - 1) / norm.ppf(tail))


def average(values: Tensor) -> tuple[float, float]:
    """Return the mean of n ≥ 2 draws and its standard error, see :func:`covering`."""
    count = len(values)
    return float(values.mean()), covering(float(values.std()) / count**0.5, count)


@formula(
    r"\hat\theta = g \theta_n - (g - 1) \bar\theta_{-k},\quad "
    r"\mathrm{se}^2 = \tfrac{g - 1}{g} \textstyle\sum_k "
    r"(\theta_{-k} - \bar\theta_{-k})^2",
    reference="Quenouille 1956; Efron and Stein 1981; g groups of n draws",
)
def jackknife(whole: float, without: Tensor) -> tuple[float, float]:
    """Remove the first-order bias of a function of a mean, and find its error.

    The inverse is convex, so by Jensen an average over few draws overstates
    the bound.

    Args:
        whole: the function of the mean of n draws.
        without: the same leaving out one of g equal groups of draws at a time, shape
            [g], g ≥ 2.

    Returns:
        The corrected value and its standard error.
    """
    g = len(without)
    shift = without - without.mean()
    error = float(((g - 1) / g * shift.square().sum()).sqrt())
    return g * whole - (g - 1) * float(without.mean()), error


def jackknifed_trace_bound(
    traces: Tensor, prior_trace: float, unknowns: int
) -> tuple[float, float]:
    """Return the trace bound without its Monte-Carlo bias, and its standard error.

    Args:
        traces: tr J_F at every draw, shape [n], n ≥ 2.
        prior_trace: tr J_P of the whole batch.
        unknowns: q.
    """
    others = (traces.sum() - traces) / (len(traces) - 1)
    without = [trace_bound(t, prior_trace, unknowns) for t in others.tolist()]
    plug_in = trace_bound(float(traces.mean()), prior_trace, unknowns)
    return jackknife(plug_in, torch.tensor(without, dtype=torch.float64))


@formula(
    r"\hat v_i = \max(g v_i - (g - 1) \bar v_{i,-k},\, 0) \cdot c,\quad "
    r"c : \textstyle\sum_i \hat v_i = t",
    reference="Quenouille 1956, for every coordinate; scaled to the total t",
)
def jackknifed_diagonal(whole: Tensor, without: Tensor, total: float) -> Tensor:
    """Remove the first-order bias of the bound on every coordinate.

    The factor c is 1 but where the total is not the sum of the jackknifed coordinates:
    where one came out negative, or where a bound on the trace alone is larger.

    Args:
        whole: v of the mean of n draws, shape [q], ≥ 0, not all zero.
        without: the same leaving out one of g groups of draws at a time, shape [g, q],
            g ≥ 2.
        total: t ≥ 0.

    Returns:
        The corrected values, shape [q], ≥ 0, which sum to the total.
    """
    g, plain = len(without), whole.double()
    corrected = g * plain - (g - 1) * without.double().mean(dim=0)
    positive = corrected.clamp(min=0)
    # Draws so few that nothing is left: the uncorrected shares are all there is.
    chosen = positive if bool(positive.any()) else plain
    return chosen * (total / chosen.sum())


@formula(
    r"P(x - u > y \mid x > u) = (1 + k y / s)^{-1/k},\quad u = x_{(n - M)},\; "
    r"M = \min(n / 5,\, 3 \sqrt n)",
    reference="Pickands 1975; Zhang and Stephens 2009; Vehtari et al., JMLR 2024",
)
def pareto_shape(values: Tensor) -> float:
    """Estimate the shape k of the tail of n draws: moments of order 1/k do not exist.

    Args:
        values: x ≥ 0, shape [n].

    Returns:
        k, pulled a little towards ½ as in Vehtari et al.; 0 where the largest values
        are all the same.
    """
    ordered = values.double().sort().values
    size = int(min(len(values) / 5, 3 * len(values) ** 0.5))
    excess = ordered[-size:] - ordered[-size - 1]
    # Differences that are rounding have no tail.
    excess = excess[excess > 1e-9 * ordered[-1]]
    n = len(excess)
    if n < _FEWEST_IN_TAIL:
        return 0.0
    grid = 30 + int(n**0.5)
    steps = torch.arange(1, grid + 1, dtype=torch.float64) - 0.5
    quartile = excess[int(n / 4 + 0.5) - 1]
    rates = 1 / excess[-1] + (1 - (grid / steps).sqrt()) / (3 * quartile)
    shapes = torch.log1p(-rates.unsqueeze(1) * excess).mean(dim=1)
    profile = n * ((-rates / shapes).log() - shapes - 1)
    rate = (profile.softmax(dim=0) * rates).sum()
    shape = float(torch.log1p(-rate * excess).mean())
    return (n * shape + 5) / (n + 10)


@formula(
    r"k \le \min(1 - 1 / \log_{10} n,\; 0.7)",
    reference="Vehtari et al., JMLR 2024",
)
def largest_shape(count: int) -> float:
    """Return up to which shape of the tail a mean of n > 10 draws can be trusted.

    Args:
        count: n.
    """
    return min(1 - 1 / math.log10(count), 0.7)
