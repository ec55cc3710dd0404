"""Places on a frontier between the attacked points, by interpolation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from exhume.compare.family import Family
from exhume.compare.frontier import Frontier, Point
from exhume.formula import formula

__all__ = [
    "Between",
    "at_budget",
    "at_point",
    "between",
    "between_seeds",
    "crossing",
    "interpolate",
    "places",
]


@dataclass(frozen=True)
class Between:
    """A place on a frontier between two attacked points, or at one of them.

    Attributes:
        loss: utility loss.
        error: of the strongest attack.
        strength: value of the option; NaN without a defense.
        interval: 95 % interval of that error.
        floor: lower bound, or None where one of the two has none; between two points it
            is interpolated too, and bounds nothing.
        points: the neighbours; one if the place is a measured point.
        per_seed: error for every seed, of mean ``error``; see :func:`between_seeds`.
    """

    loss: float
    error: float
    strength: float
    interval: tuple[float, float]
    floor: float | None
    points: tuple[Point, ...]
    per_seed: tuple[float, ...] = ()

    @property
    def interpolated(self) -> bool:
        """Whether nothing was measured just here."""
        return len(self.points) > 1


@formula(
    r"e = e_0^{1-s}\, e_1^{s}, \quad s = \frac{u - u_0}{u_1 - u_0}",
    reference="geometric interpolation: never above the straight line",
)
def interpolate(first: float, second: float, share: float) -> float:
    """Return the error at a share of the way between two measured errors.

    Args:
        first: e₀ ≥ 0, at share 0.
        second: e₁ ≥ 0, at share 1.
        share: s in [0, 1].
    """
    if first <= 0 or second <= 0:
        return min(first, second) if 0 < share < 1 else (second if share else first)
    return math.exp((1 - share) * math.log(first) + share * math.log(second))


@formula(
    r"e_k = e \left( (1 - s) \frac{e_{0k}}{e_0} + s \frac{e_{1k}}{e_1} \right)",
    reference="delta method: first order in the errors e₀ₖ, e₁ₖ of a seed, of mean e",
)
def between_seeds(
    first: Sequence[float], second: Sequence[float], share: float
) -> tuple[float, ...]:
    """Return errors per seed at a share of the way, of mean :func:`interpolate`.

    Args:
        first: e₀ₖ ≥ 0, of the same seeds as the second.
        second: e₁ₖ ≥ 0.
        share: s in [0, 1].
    """
    if not first or len(first) != len(second):
        return ()
    means = fmean(first), fmean(second)
    error = interpolate(*means, share)
    if min(means) <= 0:
        return (error,) * len(first)
    return tuple(
        error * ((1 - share) * one / means[0] + share * other / means[1])
        for one, other in zip(first, second, strict=True)
    )


def at_budget(frontier: Frontier, budget: float) -> Between | None:
    """Return the place of a family that was brought to a budget, or None.

    It is at the budget itself, between the nearest attacked points on either side;
    where none is on one side, it is the point that was calibrated.
    """
    chosen = frontier.at(budget)
    if chosen is None or chosen.strongest is None:
        return None
    points = [p for p in frontier.points if p.strongest is not None]
    below = [p for p in points if p.loss <= budget]
    above = [p for p in points if p.loss >= budget]
    if chosen.loss == budget or not below or not above:
        return at_point(chosen)
    low, high = below[-1], above[0]
    if low.loss == high.loss:
        return at_point(low)
    share = (budget - low.loss) / (high.loss - low.loss)
    return between(frontier.family, low, high, share)


def places(frontier: Frontier, max_loss: float) -> list[Between]:
    """List the places of a frontier up to a utility loss, weak to strong.

    Measured points, and the place at exactly ``max_loss`` between its neighbours, if it
    has two: nothing is said beyond what was measured.
    """
    points = [p for p in frontier.points if p.strongest is not None]
    found = [at_point(p) for p in points if p.loss <= max_loss]
    for low, high in itertools.pairwise(points):
        if low.loss < max_loss < high.loss:
            share = (max_loss - low.loss) / (high.loss - low.loss)
            found.append(between(frontier.family, low, high, share))
    return found


def at_point(point: Point) -> Between:
    """Return the place of a measured point at which an attack has finished."""
    assert point.strongest is not None
    return Between(
        point.loss,
        point.strongest.error,
        math.nan if point.strength is None else point.strength,
        point.strongest.interval,
        point.floor.value,
        (point,),
        point.strongest.per_seed,
    )


def between(family: Family, low: Point, high: Point, share: float) -> Between:
    """Return the place at a share of the way between two measured points."""
    assert low.strongest is not None
    assert high.strongest is not None
    floors = low.floor.value, high.floor.value
    floor = None
    if floors[0] is not None and floors[1] is not None:
        floor = interpolate(floors[0], floors[1], share)
    ends = zip(low.strongest.interval, high.strongest.interval, strict=True)
    first, last = (interpolate(*end, share) for end in ends)
    position = low.position + share * (high.position - low.position)
    return Between(
        low.loss + share * (high.loss - low.loss),
        interpolate(low.strongest.error, high.strongest.error, share),
        family.strength(position),
        (first, last),
        floor,
        (low, high),
        between_seeds(low.strongest.per_seed, high.strongest.per_seed, share),
    )


def crossing(frontier: Frontier, min_error: float, max_loss: float) -> Between | None:
    """Return the place of least utility loss at which an error is reached.

    Args:
        frontier: of one family.
        min_error: e.
        max_loss: u.

    Returns:
        the place, or None if no place up to ``max_loss`` reaches the error.
    """
    reached = [p for p in places(frontier, max_loss) if p.error >= min_error]
    if not reached:
        return None
    first = min(reached, key=lambda p: p.loss)
    points = [p for p in frontier.points if p.strongest is not None]
    for low, high in itertools.pairwise(points):
        assert low.strongest is not None
        assert high.strongest is not None
        if not low.strongest.error < min_error <= high.strongest.error:
            continue
        if low.loss > first.loss or low.strongest.error <= 0:
            continue
        share = math.log(min_error / low.strongest.error) / math.log(
            high.strongest.error / low.strongest.error
        )
        place = between(frontier.family, low, high, share)
        if place.loss <= first.loss:
            return place
    return first
