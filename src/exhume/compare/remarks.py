"""Sentences beside a leaderboard: who is absent, and what to read with care."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exhume.compare.findings import Comparison
from exhume.compare.frontier import Frontier, Point
from exhume.compare.places import Between, at_point
from exhume.compare.wording import shown
from exhume.report.words import number, several

__all__ = ["Ranked", "absent", "cautions", "dropped"]

#: an error that interpolation moves by more than this factor is remarked on
_FAR = 2.0


@dataclass(frozen=True)
class Ranked:
    """A family at a budget.

    Attributes:
        label: of the family.
        point: that was calibrated for the budget.
        place: at the budget; None if no attack has finished.
        frontier: of the family; None without a defense.
    """

    label: str
    point: Point
    place: Between | None
    frontier: Frontier | None = None

    @classmethod
    def at_point(cls, point: Point) -> Ranked:
        """Take a point for what it is, at no budget."""
        place = None if point.strongest is None else at_point(point)
        return cls("no defense", point, place)

    @property
    def error(self) -> float:
        """At the budget; −∞ if no attack has finished."""
        return -math.inf if self.place is None else self.place.error

    @property
    def per_seed(self) -> tuple[float, ...]:
        """Errors at the budget; empty if no attack has finished."""
        return () if self.place is None else self.place.per_seed

    @property
    def strength(self) -> str:
        """Of the point, in words."""
        if self.frontier is None or self.point.strength is None:
            return ""
        return self.frontier.family.told(self.point.strength)

    @property
    def points(self) -> tuple[Point, ...]:
        """Measured, behind the place."""
        return (self.point,) if self.place is None else self.place.points


def cautions(ranked: Sequence[Ranked]) -> list[str]:
    """Say what of a leaderboard is to be read with care."""
    told = _below(ranked) + _moved(ranked)
    for entry in ranked:
        told += dropped(entry.label, entry.points)
    return told


def dropped(label: str, points: Sequence[Point]) -> list[str]:
    """Say which attacks are left out of some points because a trial failed."""
    found = {name: why for point in points for name, why in point.dropped.items()}
    return [
        f"Left out for {label}: {name}, of which a trial failed ({why.rstrip('.')}). "
        f"The error could be smaller with it; the same command tries again."
        for name, why in found.items()
    ]


def _moved(ranked: Sequence[Ranked]) -> list[str]:
    """Name the families whose error depends on the interpolation."""
    names = []
    for entry in ranked:
        found = entry.point.strongest
        if found is None or entry.place is None or not entry.place.interpolated:
            continue
        low, high = sorted((found.error, entry.place.error))
        if high > _FAR * low:
            names.append(f"{entry.label} ({number(found.error)} measured)")
    if not names:
        return []
    return [
        f"Interpolation moves the error by more than a factor of {_FAR:g}: "
        f"{several(names)}. Lower the tolerance to measure nearer to the budget."
    ]


def _below(ranked: Sequence[Ranked]) -> list[str]:
    """Say which measured errors are below their bounds, and what that means."""
    near, far, unpaired = {}, {}, {}
    for entry in ranked:
        for point in entry.points:
            floor, found = point.floor.value, point.in_order
            if floor is None or point.strongest is None:
                continue
            if found is None or point.strongest.attack not in found.errors:
                # The best assignment looks at the truth: no bound is about its error.
                unpaired[entry.label] = None
            elif found.error < floor:
                inside = found.interval[1] >= floor
                (near if inside else far)[entry.label] = None
    told = []
    if near:
        told.append(
            f"Below its bound, but the interval includes it: {several(list(near))}. "
            f"The bound is an average over the prior; a few examples can be easier."
        )
    if far:
        told.append(
            f"Below its bound by more than the interval: {several(list(far))}. The "
            f"prior knows less of these data than the attacks do (their range, say); "
            f"run more seeds, and do not rely on this bound."
        )
    if unpaired:
        told.append(
            f"Not to be compared with its bound: the error of "
            f"{several(list(unpaired))}. A bound is about examples in a known order, "
            f"and the labels of some batches do not tell them apart."
        )
    return told


def absent(comparison: Comparison, frontier: Frontier, budget: float) -> str:
    """Say why a family does not appear at a budget, and what it does instead."""
    utility = comparison.settings.utility
    label = _capital(frontier.family.label)
    if frontier.failure:
        return f"{label} could not be measured: {frontier.failure}"
    (settled,) = [s for s in frontier.settled if s.budget == budget]
    if settled.step is None:
        weakest = frontier.family.told(frontier.family.weakest)
        return (
            f"{label} always costs more: even at its weakest ({weakest}) the loss is "
            f"above {shown(utility, budget)}."
        )
    strength, loss = settled.step.strength, shown(utility, settled.step.loss)
    point = next((p for p in frontier.points if p.strength == strength), None)
    reached = ""
    if point is not None and point.strongest is not None:
        reached = (
            f"; there the strongest attack, {point.strongest.attack}, reaches "
            f"{number(point.strongest.error)}"
        )
    told = frontier.family.told(strength)
    if settled.step.loss < budget and settled.reason.startswith("the budget"):
        return f"{label} never costs as much: at most {loss}, at {told}{reached}."
    return (
        f"{label} was not brought within the tolerance; the nearest below is {loss}, "
        f"at {told}{reached}."
    )


def _capital(label: str) -> str:
    return label[:1].upper() + label[1:]
