"""Which defense to use: an answer in words, from a finished comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exhume.compare.frontier import Frontier, Point, error_interval, rivals
from exhume.compare.places import Between, crossing, places
from exhume.compare.wording import shown, told_loss
from exhume.errors import InvalidInput
from exhume.report.words import defense_label, number, several

__all__ = ["Advice", "advise"]


@dataclass(frozen=True)
class Advice:
    """An answer to: keep the error above e with at most u of utility lost.

    Attributes:
        min_error: e, mean squared error per number of the data.
        max_loss: u, in units of the comparison's utility.
        sentences: the answer, then what to know about it.
        unneeded: the error is kept without a defense.
        family: label of the recommended family, or None.
        stack: the recommended defenses as options; empty if none is recommended, or
            none is needed.
        place: on the frontier, or None.
        interval: 95 % interval of the error there, for all families at once: that of
            the family with the largest error would else be too good.
        rivals: families of equal cost that may keep the error as high.
    """

    min_error: float
    max_loss: float
    sentences: tuple[str, ...]
    unneeded: bool = False
    family: str | None = None
    stack: tuple[dict[str, object], ...] = ()
    place: Between | None = None
    interval: tuple[float, float] | None = None
    rivals: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the error is kept: by the stack, or without any defense."""
        return self.unneeded or self.place is not None

    def __str__(self) -> str:
        return " ".join(self.sentences)


def advise(
    undefended: Point,
    frontiers: tuple[Frontier, ...],
    *,
    min_error: float,
    max_loss: float,
    utility: str,
    tolerance: float,
    chance: float | None,
) -> Advice:
    """Recommend the family that reaches an error for the least utility.

    Families within the tolerance of the least utility loss count as equal; of them the
    one with the larger error is recommended. Errors between measured points are
    interpolated along one frontier; nothing is extrapolated.

    Args:
        undefended: what the attacks reach without a defense.
        frontiers: of the families.
        min_error: e > 0.
        max_loss: u ≥ 0.
        utility: what is lost, see ``CompareSettings.utility``.
        tolerance: of equal utility.
        chance: error of guessing without the update, or None if it is not known.

    Raises:
        InvalidInput: a number is out of range.
    """
    _check(min_error, max_loss)
    asked = (
        f"To keep the reconstruction error above {number(min_error)} with at most "
        f"{told_loss(utility, max_loss)} lost"
    )
    if bare := _unneeded(undefended, asked, min_error):
        return Advice(min_error, max_loss, bare, unneeded=True)
    found = [
        (frontier, place)
        for frontier in frontiers
        if (place := crossing(frontier, min_error, max_loss)) is not None
    ]
    if not found:
        told = _none(frontiers, asked, min_error, max_loss, utility, chance)
        return Advice(min_error, max_loss, tuple(told))
    most = min(place.loss for _, place in found) + tolerance
    equal = sorted(
        (pair for pair in found if pair[1].loss <= most),
        key=lambda pair: -_error_at(*pair, most),
    )
    frontier, place = equal[0]
    interval = _interval(place, len(frontiers))
    told = _recommended(frontier, place, asked, utility)
    seeds = min(p.strongest.seeds for p in place.points if p.strongest is not None)
    told.append(_doubt(interval, seeds, min_error, len(frontiers)))
    others = [pair for pair in found if pair[0] is not frontier]
    ranked = [(f.family.label, _seeds_at(f, p, most)) for f, p in equal]
    return Advice(
        min_error,
        max_loss,
        (*told, *_others(others, utility, most, tolerance), *_sure(ranked)),
        family=frontier.family.label,
        stack=frontier.family.at(place.strength),
        place=place,
        interval=interval,
        rivals=rivals(ranked),
    )


def _interval(place: Between, families: int) -> tuple[float, float]:
    """Return the interval of the chosen place: the best of several looks too good."""
    if not place.per_seed:
        return place.interval
    return error_interval(place.per_seed, tests=families)


def _seeds_at(frontier: Frontier, place: Between, loss: float) -> tuple[float, ...]:
    """Return the errors by seed where the family has its largest error."""
    best = max(places(frontier, loss), key=lambda p: p.error, default=place)
    return best.per_seed


def _sure(ranked: list[tuple[str, tuple[float, ...]]]) -> list[str]:
    """Say how sure it is that the first is the best of those that cost as little."""
    if len(ranked) < 2:
        return []
    close = rivals(ranked)
    if not close:
        others = len(ranked) - 1
        return [f"It keeps more error than the {others} of equal cost (95 % sure)."]
    return [
        f"Of equal cost, {several(list(close))} may keep as much: the seeds do not "
        f"tell them apart."
    ]


def _check(min_error: float, max_loss: float) -> None:
    if not (0 < min_error < math.inf and 0 <= max_loss < math.inf):
        msg = (
            f"min_error is {min_error} and max_loss is {max_loss}; expected an error "
            f"above 0 and a loss of at least 0"
        )
        raise InvalidInput(msg)


def _unneeded(undefended: Point, asked: str, min_error: float) -> tuple[str, ...]:
    """Say that the error is kept without a defense; nothing if it is not."""
    bare = undefended.strongest
    if bare is None or bare.error < min_error:
        return ()
    first = (
        f"{asked}, no defense is needed: without one the strongest attack "
        f"({bare.attack}) reaches {number(bare.error)}."
    )
    return first, _doubt(bare.interval, bare.seeds, min_error)


def _others(
    found: list[tuple[Frontier, Between]], utility: str, most: float, tolerance: float
) -> list[str]:
    """Name the other families that reach the error, the cheapest first.

    Args:
        found: the families and where each reaches it.
        utility: what is lost.
        most: loss up to which utility counts as equal to the least.
        tolerance: of equal utility.
    """
    equal, dearer = [], []
    for frontier, place in sorted(found, key=lambda pair: pair[1].loss):
        family, lost = frontier.family, shown(utility, place.loss)
        name = f"{family.label} ({family.told(place.strength)}, {lost} lost)"
        (equal if place.loss <= most else dearer).append(name)
    told = []
    if equal:
        within = shown(utility, tolerance)
        told.append(
            f"Equally cheap within the tolerance of {within}: {several(equal)}."
        )
    if dearer:
        told.append(f"Others that reach it: {several(dearer)}.")
    return told


def _error_at(frontier: Frontier, place: Between, loss: float) -> float:
    return max((p.error for p in places(frontier, loss)), default=place.error)


def _recommended(
    frontier: Frontier, place: Between, asked: str, utility: str
) -> list[str]:
    stack = defense_label(frontier.family.at(place.strength))
    floor = "no bound is known to hold"
    if place.floor is not None and place.interpolated:
        floor = (
            f"bounds interpolate to {number(place.floor)}, which itself bounds nothing"
        )
    elif place.floor is not None:
        floor = (
            f"on data that follow the prior no attack goes below {number(place.floor)} "
            f"on average"
        )
    reached = [p.strongest for p in place.points if p.strongest is not None]
    names = list(dict.fromkeys(s.attack for s in reached))
    many = len(names) > 1
    attacks = f"attack{'s' * many}, {several(names)}, reach{'es' * (not many)}"
    told = [
        f"{asked}, use {stack} (the strongest {attacks} "
        f"{number(place.error)}; {floor}; {told_loss(utility, place.loss)} lost)."
    ]
    if len(place.points) > 1:
        ends = " and ".join(
            frontier.family.told(p.strength) for p in place.points if p.strength
        )
        told.append(f"This is interpolated between {ends}, which were measured.")
    reasons = [p.floor.reason for p in place.points if p.floor.reason]
    if place.floor is None and reasons:
        told.append(f"There is no bound because {reasons[0]}.")
    return told


def _doubt(
    interval: tuple[float, float], seeds: int, min_error: float, families: int = 1
) -> str:
    """Say how sure the error is."""
    low, high = interval
    if seeds < 2:
        return "One seed only: the error may be quite different on other data."
    told = f"The 95 % interval over {seeds} seeds"
    if families > 1:
        told += f", for all {families} families at once,"
    told += f" is {number(low)} to {number(high)}"
    if low < min_error:
        return f"{told}, which includes errors below what you ask: run more seeds."
    return f"{told}."


def _none(
    frontiers: tuple[Frontier, ...],
    asked: str,
    min_error: float,
    max_loss: float,
    utility: str,
    chance: float | None,
) -> list[str]:
    told = [f"{asked}, no defense tried does."]
    if chance is not None and min_error > chance:
        told.append(
            f"No defense can: guessing without the update reaches {number(chance)}."
        )
    best = [
        (place, frontier)
        for frontier in frontiers
        for place in places(frontier, max_loss)
    ]
    if best:
        place, frontier = max(best, key=lambda pair: pair[0].error)
        told.append(
            f"The best is {defense_label(frontier.family.at(place.strength))}, where "
            f"the strongest attack reaches {number(place.error)} "
            f"({told_loss(utility, place.loss)} lost)."
        )
        dearer = [
            (p, f)
            for f in frontiers
            if (p := crossing(f, min_error, math.inf)) is not None
        ]
        if dearer:
            place, frontier = min(dearer, key=lambda pair: pair[0].loss)
            told.append(
                f"It takes at least {told_loss(utility, place.loss)}, with "
                f"{defense_label(frontier.family.at(place.strength))}."
            )
    else:
        losses = [p.loss for f in frontiers for p in f.points]
        if losses:
            told.append(
                f"Nothing was measured at so small a loss; the least was "
                f"{told_loss(utility, min(losses))}. Compare with smaller budgets."
            )
    return told
