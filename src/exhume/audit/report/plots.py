"""The drawings of a report: error against strength, and the course of each attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from exhume.audit.report.described import described
from exhume.audit.report.grouping import Defended, Scenario, values
from exhume.report.pictures import (
    INK,
    MUTED,
    SERIES,
    Legend,
    Plot,
    canvas,
    log_axis,
    svg,
)
from exhume.report.words import also, median, number
from exhume.runs.records import (
    BOUNDED_METRIC,
    TrialResult,
    binds_every_attack,
    is_error,
    level,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BOUND_LABEL", "Legend", "Plot", "convergence", "error_plots", "legend"]

BOUND_LABEL = "no attack can do better on average over the prior"

#: the drawn spread of an error: the middle 80 % of all examples and seeds
_SPREAD = (0.1, 0.9)
#: a fraction beyond which what it leaves matters more than what it takes
_MOSTLY = 0.9
#: an exact reconstruction is drawn this far below the smallest error that is not zero
_EXACT = 10.0


def legend(scenario: Scenario) -> list[Legend]:
    """List what the lines of the error plots mean."""
    items = [
        Legend("curve", i % len(SERIES), SERIES[i % len(SERIES)][1], attack)
        for i, attack in enumerate(scenario.contenders)
    ]
    for i, baseline in enumerate(_baselines(scenario)):
        kind, what = ("other", "guess") if i else ("chance", "chance level")
        items.append(Legend(kind, 0, "", f"{baseline} ({what})"))
    if any(_bounds(scenario, d) for d in scenario.defenses):
        items.append(Legend("bound", 0, "", BOUND_LABEL))
    return items


def error_plots(scenario: Scenario, name: str) -> list[Plot]:
    """Draw one plot per family of defenses, or one over attacks if none was tried.

    Args:
        scenario: the trials.
        name: start of every id in the drawings, unique on the page.
    """
    if not values(scenario.results, scenario.headline):
        return []
    families = list(dict.fromkeys(d.family for d in scenario.defenses if d.family))
    if not families:
        return [_by_attack(scenario, f"{name}-attacks")]
    return [
        _by_strength(scenario, family, f"{name}-{index}")
        for index, family in enumerate(families)
    ]


def _by_strength(scenario: Scenario, family: str, name: str) -> Plot:
    members = [d for d in scenario.defenses if d.is_none or d.family == family]
    places, ticks = _places(members)
    floor = _floor(scenario)
    with canvas(3.8, 3.0) as (figure, axes):
        log_axis(axes, _drawn(scenario, floor))
        axes.set_xlim(min(places) - 0.4, max(places) + 0.4)
        _draw_chance(axes, scenario, members, places)
        for index, attack in enumerate(scenario.contenders):
            cells = [scenario.done(d, attack) for d in members]
            errors = [values(cell, scenario.headline) for cell in cells]
            _draw_series(axes, places, errors, index, floor)
        _draw_bound(axes, scenario, members, places)
        axes.set_xticks(places, ticks, rotation=30 if len(ticks) > 6 else 0)
        option = next((d.strength[0] for d in members if d.strength), "")
        if option:
            axes.set_xlabel(f"{option.replace('_', ' ')} (stronger →)")
        axes.set_ylabel(described(scenario.headline).axis("of an example"))
        text = svg(figure, name)
    alt = (
        f"{_quantity(scenario)} of {also(scenario.contenders)} against {family}: "
        f"{'; '.join(_told(scenario, d) for d in members)}."
    )
    return Plot(family, text, alt)


def _told(scenario: Scenario, defense: Defended) -> str:
    errors = {
        a: median(values(scenario.done(defense, a), scenario.headline))
        for a in scenario.contenders
    }
    told = also([f"{a} {number(e)}" for a, e in errors.items() if e is not None], 6)
    return f"{defense.label}: {told or 'nothing finished'}"


def _places(members: Sequence[Defended]) -> tuple[list[float], list[str]]:
    """Put defenses on the x axis, weak to strong; no defense one step to the left.

    Without distinct numbers they are evenly spaced, else by the logarithm of the
    strength (of what a fraction leaves, where it takes nearly all).
    """
    defended = [d for d in members if not d.is_none]
    ticks = ["none"] * (len(members) - len(defended))
    ticks += [f"{d.strength[1]:g}" if d.strength else d.label for d in defended]
    numbers = [d.strength[1] for d in defended if d.strength]
    places = [1.0 + i for i in range(len(defended))]
    if len(set(numbers)) == len(defended) > 1:
        axis = _axis(numbers)
        # Evenly wide whatever the unit: the mean gap is one step.
        gap = abs(axis[-1] - axis[0]) / (len(axis) - 1)
        places = [1 + abs(v - axis[0]) / gap for v in axis]
    return [0.0] * (len(members) - len(defended)) + places, ticks


def _axis(strengths: Sequence[float]) -> list[float]:
    low, high = min(strengths), max(strengths)
    if low > 0 and _MOSTLY <= high < 1 and high < 20 * low:
        return [-math.log10(1 - v) for v in strengths]
    return [math.log10(v) for v in strengths] if low > 0 else list(strengths)


def _floor(scenario: Scenario) -> float:
    positive = [v for v in values(scenario.results, scenario.headline) if v > 0]
    return min(positive, default=1e-15) / _EXACT


def _drawn(scenario: Scenario, floor: float) -> list[float]:
    """Return every error and bound: the plots of a scenario share their y axis."""
    bounds = [b for d in scenario.defenses for b in _bounds(scenario, d)]
    errors = values(scenario.results, scenario.headline)
    return [max(v, floor) for v in errors] + bounds


def _draw_series(
    axes: Axes,
    places: Sequence[float],
    found: Sequence[Sequence[float]],
    index: int,
    floor: float,
) -> None:
    colour, marker = SERIES[index % len(SERIES)]
    errors = [[max(e, floor) for e in one] for one in found]
    drawn = sorted((p, e) for p, e in zip(places, errors, strict=True) if e)
    if not drawn:
        return
    x = [place for place, _ in drawn]
    lows, highs = (
        [float(np.quantile(e, q, method="nearest")) for _, e in drawn] for q in _SPREAD
    )
    axes.fill_between(x, lows, highs, color=colour, alpha=0.14, linewidth=0)
    axes.vlines(x, lows, highs, color=colour, alpha=0.45, linewidth=1.2)
    middle = [median(e) or floor for _, e in drawn]
    axes.plot(
        x, middle, color=colour, marker=marker, markersize=5.5, linewidth=1.8, zorder=3
    )


def _baselines(scenario: Scenario) -> list[str]:
    """Return the chance levels, the prior mean first."""
    return [a for a in scenario.attacks if a in scenario.baselines]


def _draw_chance(
    axes: Axes, scenario: Scenario, members: Sequence[Defended], places: Sequence[float]
) -> None:
    """Draw the prior mean as a band over the whole width, other guesses as lines."""
    for index, baseline in enumerate(_baselines(scenario)):
        cells = [scenario.done(d, baseline) for d in members]
        found = [values(cell, scenario.headline) for cell in cells]
        errors = [error for one in found for error in one]
        if not any(errors):
            continue
        if index == 0:
            middle = median(errors) or 0.0
            low, high = (float(np.quantile(errors, q)) for q in _SPREAD)
            axes.axhspan(low, high, color=MUTED, alpha=0.15, linewidth=0, zorder=0)
            axes.axhline(middle, color=MUTED, linewidth=1.3, zorder=1)
        else:
            middle = [median(one) for one in found]
            x, y = _level([(p, m) for p, m in zip(places, middle, strict=True) if m])
            axes.plot(x, y, color=MUTED, linestyle=":", linewidth=1.6, zorder=1)


def _level(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Join points from weak to strong; a single one becomes a short level line."""
    x, y = [p for p, _ in sorted(points)], [v for _, v in sorted(points)]
    return ([x[0] - 0.3, x[0] + 0.3], [y[0], y[0]]) if len(x) == 1 else (x, y)


def _bounds(scenario: Scenario, defense: Defended) -> list[float]:
    """Return the bounds on the squared error that no attack of any kind beats.

    There are none where attacks are ranked by another error.
    """
    if scenario.headline != BOUNDED_METRIC:
        return []
    cells = [scenario.done(defense, bound) for bound in scenario.bounds]
    strict = [[r for r in c if is_error(r) and binds_every_attack(r)] for c in cells]
    found = [level(cell) for cell in strict]
    return [b.value for b in found if b is not None and 0 < b.value < math.inf]


def _draw_bound(
    axes: Axes, scenario: Scenario, members: Sequence[Defended], places: Sequence[float]
) -> None:
    """Draw the highest bound at every strength where one holds."""
    found = {p: _bounds(scenario, d) for p, d in zip(places, members, strict=True)}
    points = [(p, max(bounds)) for p, bounds in found.items() if bounds]
    if not points:
        return
    x, y = _level(points)
    axes.plot(x, y, color=INK, linestyle=(0, (4, 2.5)), linewidth=1.7, zorder=4)
    bottom = axes.get_ylim()[0]
    axes.fill_between(x, y, bottom, color=INK, alpha=0.06, linewidth=0)
    axes.set_ylim(bottom=bottom)


def _by_attack(scenario: Scenario, name: str) -> Plot:
    floor = _floor(scenario)
    with canvas(4.6, 3.0) as (figure, axes):
        log_axis(axes, _drawn(scenario, floor))
        ends = [-0.5, max(1, len(scenario.contenders)) - 0.5]
        axes.set_xlim(*ends)
        _draw_chance(axes, scenario, scenario.defenses[:1] * 2, ends)
        for index, attack in enumerate(scenario.contenders):
            cells = [scenario.done(d, attack) for d in scenario.defenses]
            errors = [values(cell, scenario.headline) for cell in cells]
            _draw_series(axes, [float(index)], errors, index, floor)
        axes.set_xticks(range(len(scenario.contenders)), scenario.contenders)
        axes.set_ylabel(described(scenario.headline).axis("of an example"))
        text = svg(figure, name)
    told = "; ".join(_told(scenario, d) for d in scenario.defenses)
    return Plot("No defense", text, f"{_quantity(scenario)} of each attack: {told}.")


def _quantity(scenario: Scenario) -> str:
    quantity = described(scenario.headline).quantity
    return quantity[:1].upper() + quantity[1:]


def convergence(scenario: Scenario, name: str) -> tuple[str, list[Plot]]:
    """Draw the course of every attack in one setting.

    Objectives of different attacks are different functions, so each has its own plot;
    the level that the same function takes at the truth is drawn in.

    Returns:
        the setting in words, and one plot per attack that left a trace there.
    """
    courses = {
        (number_of, defense.label, seed): [
            (index, attack, r)
            for index, attack in enumerate(scenario.contenders)
            for r in scenario.done(defense, attack)
            if r.spec.seed == seed and _drawable(r)
        ]
        for number_of, defense in enumerate(scenario.defenses)
        for seed in scenario.seeds
    }
    if not any(courses.values()):
        return "", []
    # The setting with most traces; of equal ones the first: no defense, first seed.
    chosen = max(courses, key=lambda key: (len(courses[key]), -key[0], -key[2]))
    plots = [
        _course(attack, index, result, f"{name}-{place}")
        for place, (index, attack, result) in enumerate(courses[chosen])
    ]
    return f"{chosen[1]}, seed {chosen[2]}", plots


def _drawable(result: TrialResult) -> bool:
    return sum(math.isfinite(row[3]) for row in result.trace) > 1


def _course(attack: str, index: int, result: TrialResult, name: str) -> Plot:
    colour = SERIES[index % len(SERIES)][0]
    at_truth = result.objective_at_truth
    levels = [row[3] for row in result.trace if math.isfinite(row[3])]
    positive = min(levels) > 0
    drawable = at_truth is not None and (at_truth > 0 or not positive)
    with canvas(3.2, 2.4) as (figure, axes):
        if positive:
            log_axis(axes, [*levels, at_truth] if drawable and at_truth else levels)
        for restart in sorted({row[0] for row in result.trace}):
            seconds, objective = _curve(result, restart)
            axes.plot(seconds, objective, color=colour, linewidth=1.6, alpha=0.85)
        if at_truth is not None and drawable:
            axes.axhline(at_truth, color=INK, linestyle=(0, (4, 2.5)), linewidth=1.2)
        axes.set_xlabel("CPU seconds")
        axes.set_ylabel("own objective")
        text = svg(figure, name)
    alt = (
        f"{attack}: objective from {number(levels[0])} to {number(result.objective)}; "
        f"at the truth {number(at_truth)}"
    )
    return Plot(attack, text, alt)


def _curve(
    result: TrialResult, restart: int
) -> tuple[Sequence[float], Sequence[float]]:
    rows = [r for r in result.trace if r[0] == restart and math.isfinite(r[3])]
    return [row[2] for row in rows], [row[3] for row in rows]
