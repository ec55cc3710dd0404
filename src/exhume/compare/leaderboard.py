"""The families in order at every budget, as rows of words for terminal and page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exhume.audit.report.bounds import told_epsilon
from exhume.compare.findings import Comparison
from exhume.compare.frontier import Floor, Strongest, rivals
from exhume.compare.places import Between, at_budget
from exhume.compare.remarks import Ranked, absent, cautions
from exhume.compare.wording import shown, told_loss, told_range
from exhume.report.words import number
from exhume.runs.records import BOUNDED_METRIC

__all__ = [
    "Board",
    "Row",
    "attack_name",
    "attack_names",
    "boards",
    "undefended_row",
]


@dataclass(frozen=True)
class Row:
    """One family at one budget.

    Attributes:
        place: 1 for the largest error; None where the utility is not the budget's.
        defense: label of the family.
        strength: that was calibrated, in words.
        loss: utility lost there, as measured.
        loss_range: its 95 % interval; "" if there is one seed only.
        measured: error of the strongest attack there.
        error: of the strongest attack at the budget itself.
        error_range: its 95 % interval.
        interpolated: the error at the budget lies between two attacked strengths.
        psnr: a squared error as a PSNR, for data in [0, 1]; "–" for another error.
        attack: the strongest one.
        bound: lower bound at the calibrated strength with its standard error, or "–".
        between: what bounds interpolate to at the budget, which bounds nothing, or "".
        reason: why there is no bound, else "".
        epsilon: of one release at the calibrated strength, or that it is not accounted.
    """

    place: int | None
    defense: str
    strength: str
    loss: str
    loss_range: str
    measured: str
    error: str
    error_range: str
    interpolated: bool
    psnr: str
    attack: str
    bound: str
    between: str
    reason: str
    epsilon: str

    @property
    def shown_error(self) -> str:
        """The error at the budget, marked where it is interpolated."""
        return f"≈ {self.error}" if self.interpolated else self.error


@dataclass(frozen=True)
class Board:
    """One budget.

    Attributes:
        budget: utility loss.
        title: in words.
        rows: the families of equal utility, the largest error first.
        remarks: sentences on families that are not among them, and on what is to be
            read with care.
        rivals: families that may be as good as the first.
    """

    budget: float
    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    rivals: tuple[str, ...]


def boards(comparison: Comparison) -> list[Board]:
    """Rank the families at every budget by the error of the strongest attack."""
    return [_board(comparison, budget) for budget in comparison.settings.budgets]


def undefended_row(comparison: Comparison) -> Row:
    """Describe what the attacks reach without a defense."""
    point = comparison.undefended
    return _row(None, "no defense", "", Ranked.at_point(point), comparison)


def _board(comparison: Comparison, budget: float) -> Board:
    utility = comparison.settings.utility
    ranked: list[Ranked] = []
    remarks = []
    for frontier in comparison.frontiers:
        point = frontier.at(budget)
        if point is None:
            remarks.append(absent(comparison, frontier, budget))
        else:
            place = at_budget(frontier, budget)
            ranked.append(Ranked(frontier.family.label, point, place, frontier))
    ranked.sort(key=lambda entry: -entry.error)
    rows = [
        _row(place, entry.label, entry.strength, entry, comparison)
        for place, entry in enumerate(ranked, start=1)
    ]
    remarks += cautions(ranked)
    tolerance = shown(utility, comparison.settings.tolerance)
    title = f"{told_loss(utility, budget)} lost (± {tolerance})"
    names = rivals([(entry.label, entry.per_seed) for entry in ranked])
    return Board(budget, title, tuple(rows), tuple(remarks), names)


def _row(
    rank: int | None,
    label: str,
    strength: str,
    entry: Ranked,
    comparison: Comparison,
) -> Row:
    utility, point, place = comparison.settings.utility, entry.point, entry.place
    found = point.strongest
    plain = point.strength is None
    error = None if place is None else place.error
    return Row(
        place=rank,
        defense=label,
        strength=strength,
        loss=shown(utility, point.loss),
        loss_range="" if plain else told_range(utility, point.loss_interval),
        measured="–" if found is None else number(found.error),
        error="–" if error is None else number(error),
        error_range="" if place is None else _range(place.interval),
        interpolated=place is not None and place.interpolated,
        psnr=_psnr(error, comparison.metric),
        attack="none finished" if place is None else attack_names(place),
        bound=_bound(point.floor),
        between=_between(place),
        reason=point.floor.reason,
        epsilon=told_epsilon(point.privacy),
    )


def attack_names(place: Between) -> str:
    """Name the strongest attacks of the points behind a place."""
    found = [p.strongest for p in place.points if p.strongest is not None]
    return " / ".join(dict.fromkeys(map(attack_name, found)))


def _between(place: Between | None) -> str:
    if place is None or not place.interpolated or place.floor is None:
        return ""
    return f"≈ {number(place.floor)}, not a bound"


def attack_name(found: Strongest) -> str:
    """Name the strongest attack, and say if it is a mere guess."""
    return f"{found.attack} (chance)" if found.chance else found.attack


def _range(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{number(low, 2)} to {number(high, 2)}" if math.isfinite(high) else ""


def _psnr(error: float | None, metric: str) -> str:
    if error is None or metric != BOUNDED_METRIC:
        return "–"
    return "∞" if error <= 0 else f"{-10 * math.log10(error):.1f} dB".replace("-", "−")


def _bound(floor: Floor) -> str:
    if floor.value is None:
        return "–"
    return f"{number(floor.value)} ± {number(floor.error, 1)}"
