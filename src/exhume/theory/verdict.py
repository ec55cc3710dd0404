"""Predicted and measured exponents side by side, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from exhume.report.words import count, score, several
from exhume.theory.collect import Curve, Measured
from exhume.theory.slopes import Slope

__all__ = ["HEADINGS", "Row", "exponent", "interval", "rows", "summary", "verdict"]

#: how far a finite network may be from an exponent of the limit
_TOLERANCE = 0.1
#: half the width of an interval from which on it would agree with too much
_WIDEST = 0.3
#: errors that differ by less are the same
_SAME = 1.1

HEADINGS = (
    "defense", "over", "upper rate", "attack", "measured", "95 %",
    "lower rate", "exact bound", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: an experiment and one way of the attack.

    Attributes:
        cells: in the order of :data:`HEADINGS`.
    """

    cells: tuple[str, ...]


def exponent(value: float | None) -> str:
    """Write an exponent with its sign; – for none."""
    if value is None:
        return "–"
    # Adding 0 turns −0 into 0.
    text = f"{round(value, 2) + 0.0:+.2f}"
    return text.replace("-", "−").replace("+0.00", "0")


def interval(slope: Slope | None) -> str:
    """Write the interval of an exponent."""
    if slope is None or not slope.known:
        return "–"
    return f"{exponent(slope.low)} to {exponent(slope.high)}"


def rows(curves: Sequence[Curve]) -> list[Row]:
    """List every experiment and arm."""
    return [_row(curve, arm) for curve in curves for arm in curve.arms]


def _row(curve: Curve, arm: Measured) -> Row:
    first = arm is curve.first
    upper = exponent(curve.upper) if curve.rate.upper.known else "unknown"
    if curve.rate.upper.origin == "second-hand":
        upper += " *"
    floor = curve.floor.slope if curve.floor else None
    return Row(
        (
            curve.title if first else "",
            curve.experiment.sweep.replace("rho", "1/(1−ρ)")
            .replace("sigma", "σ")
            .replace("C", "1/C")
            if first
            else "",
            upper if first else "",
            arm.name,
            exponent(arm.slope.value) if arm.slope else "–",
            interval(arm.slope),
            exponent(curve.lower) if first else "",
            exponent(floor.value if floor else None) if first else "",
            verdict(curve, arm),
        )
    )


def verdict(curve: Curve, arm: Measured) -> str:
    """Say how a measured exponent stands to the rates.

    On an axis that grows with the strength, an error may rise at most as the upper
    rate, and rises at least as the lower one where the bound is near. A wide interval
    can tell that an exponent differs from a rate, never that it agrees.
    """
    if arm.exact:
        return "exact up to rounding"
    if arm.slope is None:
        return "too few errors below that of half a guess"
    if curve.upper is None:
        return "no upper rate is known"
    narrow = arm.slope.half_width <= _WIDEST
    if _compatible(arm.slope, curve.upper):
        return "as the upper rate" if narrow else "the interval is too wide to tell"
    if arm.slope.value < curve.upper:
        lower = curve.lower
        if narrow and lower is not None and _compatible(arm.slope, lower):
            return "as the lower rate"
        return "better than the upper rate"
    if _never_above(arm, curve.first):
        return "steeper, from below the first attack"
    return "steeper than the upper rate"


def _never_above(arm: Measured, first: Measured | None) -> bool:
    """Say whether an arm has no larger error than the first one anywhere."""
    if first is None or arm is first:
        return False
    known = dict(first.means)
    return all(value <= known.get(at, 0.0) * _SAME for at, value in arm.means)


def _compatible(slope: Slope, value: float) -> bool:
    """Say whether a measured exponent does not rule a predicted one out."""
    near = abs(slope.value - value) <= _TOLERANCE
    return near or slope.low <= value <= slope.high


def summary(curves: Sequence[Curve]) -> list[str]:
    """Say in a few sentences what was found."""
    compared = sum(curve.compared for curve in curves)
    told = []
    if compared:
        below = [(c, b) for c in curves for b in c.below]
        if below:
            names = several(list(dict.fromkeys(c.title for c, _ in below)))
            told.append(
                f"{count(len(below), 'error')} of {compared} {_lie(len(below))} below "
                f"the exact lower bound of the same point ({names})."
            )
        else:
            told.append(
                f"None of {compared} errors lies below the exact lower bound of the "
                f"same point."
            )
    gaps = [g for curve in curves if (g := _gap(curve)) is not None]
    if gaps:
        told.append(
            f"The best attack stays within a factor of {min(gaps):.2g} of the bound in "
            f"the nearest experiment and {max(gaps):.2g} in the farthest."
        )
    broken = [c.title for c in curves if c.first and "steeper" in verdict(c, c.first)]
    if broken:
        told.append(
            f"The first attack is steeper than the upper rate in {several(broken)}."
        )
    return told + [_seen(curve) for curve in curves if curve.similarity]


def _seen(curve: Curve) -> str:
    """Say how alike images are to the originals at the last place."""
    last = max(at for by_place in curve.similarity.values() for at in by_place)
    parts = []
    for arm, by_place in curve.similarity.items():
        values = [v for seed in by_place.get(last, {}).values() for v in seed]
        if values:
            parts.append(f"{score('ssim', fmean(values))} by {arm}")
    where = f"{curve.title} at {curve.axis} = {last:g}"
    return f"The mean SSIM of {where} is {several(parts)}."


def _lie(number: int) -> str:
    return "lies" if number == 1 else "lie"


def _gap(curve: Curve) -> float | None:
    """Return how far the best arm is from the bound at the last place, as a factor."""
    if curve.floor is None:
        return None
    floors = dict(curve.floor.means)
    shared = [
        (at, value / floors[at])
        for arm in curve.arms
        for at, value in arm.means
        if at in floors
    ]
    if not shared:
        return None
    last = max(at for at, _ in shared)
    return min(ratio for at, ratio in shared if at == last)
