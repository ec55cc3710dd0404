"""The families in order at every budget, as rows of words for terminal and page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exhume.audit.report.promises import told_epsilon
from exhume.audit.report.words import number, several
from exhume.compare.frontier import Floor, Frontier, Point, Strongest
from exhume.compare.run import Comparison
from exhume.compare.units import shown, told_loss, told_range

__all__ = ["Board", "Row", "boards", "undefended_row"]


@dataclass(frozen=True)
class Row:
    """One family at one budget.

    Attributes:
        place: 1 for the largest error; None where the utility is not the budget's.
        defense: label of the family.
        strength: in words.
        loss: utility lost.
        loss_range: its 95 % interval; "" if there is one seed only.
        error: of the strongest attack.
        error_range: its 95 % interval.
        psnr: the error as a PSNR, for data in [0, 1].
        attack: the strongest one.
        bound: lower bound with its standard error, or "–".
        reason: why there is no bound, else "".
        epsilon: of one release, or that it is not accounted.
        highest: upper end of the interval of the error.
    """

    place: int | None
    defense: str
    strength: str
    loss: str
    loss_range: str
    error: str
    error_range: str
    psnr: str
    attack: str
    bound: str
    reason: str
    epsilon: str
    highest: float


@dataclass(frozen=True)
class Board:
    """One budget.

    Attributes:
        budget: utility loss.
        title: in words.
        rows: the families of equal utility, the largest error first.
        remarks: one sentence for every family that is not among them.
        best: error of the first row; −∞ without one.
    """

    budget: float
    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    best: float

    @property
    def rivals(self) -> list[str]:
        """Families that may be as good as the first: their intervals reach it."""
        return [row.defense for row in self.rows[1:] if row.highest >= self.best]


def boards(comparison: Comparison) -> list[Board]:
    """Rank the families at every budget by the error of the strongest attack."""
    return [_board(comparison, budget) for budget in comparison.settings.budgets]


def undefended_row(comparison: Comparison) -> Row:
    """Describe what the attacks reach without a defense."""
    return _row(None, "no defense", "", comparison.undefended, comparison)


def _board(comparison: Comparison, budget: float) -> Board:
    utility = comparison.settings.utility
    ranked: list[tuple[Frontier, Point]] = []
    remarks = []
    for frontier in comparison.frontiers:
        point = frontier.at(budget)
        if point is None:
            remarks.append(remark(comparison, frontier, budget))
        else:
            ranked.append((frontier, point))
    ranked.sort(key=lambda pair: -_error(pair[1]))
    rows = [
        _row(place, f.family.label, _strength(f, p), p, comparison)
        for place, (f, p) in enumerate(ranked, start=1)
    ]
    remarks += _below(ranked)
    tolerance = shown(utility, comparison.settings.tolerance)
    title = f"{told_loss(utility, budget)} lost (± {tolerance})"
    best = max((_error(point) for _, point in ranked), default=-math.inf)
    return Board(budget, title, tuple(rows), tuple(remarks), best)


def _below(ranked: list[tuple[Frontier, Point]]) -> list[str]:
    """Say which errors are below their bounds, and what that means."""
    near, far = [], []
    for frontier, point in ranked:
        floor, found = point.floor.value, point.strongest
        if floor is not None and found is not None and found.error < floor:
            inside = found.interval[1] >= floor
            (near if inside else far).append(frontier.family.label)
    told = []
    if near:
        told.append(
            f"Below its bound, but the interval includes it: {several(near)}. The "
            f"bound is an average over the prior; a few examples can be easier."
        )
    if far:
        told.append(
            f"Below its bound by more than the interval: {several(far)}. The prior "
            f"knows less of these data than the attacks do (their range, say); run "
            f"more seeds, and do not rely on this bound."
        )
    return told


def _capital(label: str) -> str:
    return label[:1].upper() + label[1:]


def _error(point: Point) -> float:
    return -math.inf if point.strongest is None else point.strongest.error


def _strength(frontier: Frontier, point: Point) -> str:
    return "" if point.strength is None else frontier.family.told(point.strength)


def remark(comparison: Comparison, frontier: Frontier, budget: float) -> str:
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


def _row(
    place: int | None,
    label: str,
    strength: str,
    point: Point,
    comparison: Comparison,
) -> Row:
    utility = comparison.settings.utility
    found = point.strongest
    plain = point.strength is None
    return Row(
        place=place,
        defense=label,
        strength=strength,
        loss=shown(utility, point.loss),
        loss_range="" if plain else told_range(utility, point.loss_interval),
        error="–" if found is None else number(found.error),
        error_range="" if found is None else _range(found),
        psnr="–" if found is None else _psnr(found.error),
        attack="none finished" if found is None else attack_name(found),
        bound=_bound(point.floor),
        reason=point.floor.reason,
        epsilon=told_epsilon(point.privacy),
        highest=math.inf if found is None else found.interval[1],
    )


def attack_name(found: Strongest) -> str:
    """Name the strongest attack, and say if it is a mere guess."""
    return f"{found.attack} (chance)" if found.chance else found.attack


def _range(found: Strongest) -> str:
    low, high = found.interval
    return f"{number(low, 2)} to {number(high, 2)}" if math.isfinite(high) else ""


def _psnr(error: float) -> str:
    return "∞" if error <= 0 else f"{-10 * math.log10(error):.1f} dB".replace("-", "−")


def _bound(floor: Floor) -> str:
    if floor.value is None:
        return "–"
    return f"{number(floor.value)} ± {number(floor.error, 1)}"
