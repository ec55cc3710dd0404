"""The drawings of a report: error against strength, and the course of each attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exhume.audit.report.bounds import bound_rows
from exhume.audit.report.results import Defended, Scenario, described, values
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
from exhume.runs.records import BOUNDED_METRIC, TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BOUND_LABEL", "Legend", "Plot", "convergence", "error_plots", "legend"]

BOUND_LABEL = "no attack does better on average, if data follow the prior"

#: the drawn spread of an error: the middle 80 % of all examples and seeds
_SPREAD = (0.1, 0.9)
#: a fraction beyond which what it leaves matters more than what it takes
_MOSTLY = 0.9
#: an exact reconstruction is drawn this far below the smallest error that is not zero
_EXACT = 10.0
#: how a bound is drawn, and the objective at the truth
_DASHED = (0, (4, 2.5))


def legend(scenario: Scenario) -> list[Legend]:
    """List what the lines of the error plots mean."""
    items = [
        Legend("curve", i % len(SERIES), SERIES[i % len(SERIES)][1], attack)
        for i, attack in enumerate(scenario.contenders)
    ]
    for i, baseline in enumerate(scenario.baselines):
        kind, what = ("other", "guess") if i else ("chance", "chance level")
        items.append(Legend(kind, 0, "", f"{baseline} ({what})"))
    if _floors(scenario):
        items.append(Legend("bound", 0, "", BOUND_LABEL))
    return items


def _floors(scenario: Scenario) -> dict[str, float]:
    """Return the highest bound on the squared error of every attack, by defense.

    There are none where attacks are ranked by another error.
    """
    floors: dict[str, float] = {}
    if scenario.headline == BOUNDED_METRIC:
        for row in bound_rows(scenario):
            if row.strict and row.mean and row.mean < math.inf:
                floors[row.defense] = max(row.mean, floors.get(row.defense, 0.0))
    return floors


@dataclass(frozen=True)
class _Errors:
    """What the plots of a scenario draw, on one y axis.

    Attributes:
        scenario: the trials.
        cells: (defense label, attack) → errors over all examples and seeds.
        floors: defense label → bound.
        least: where an exact reconstruction is drawn.
        drawn: all of them.
    """

    scenario: Scenario
    cells: dict[tuple[str, str], list[float]]
    floors: dict[str, float]
    least: float
    drawn: list[float]


def error_plots(scenario: Scenario, name: str) -> list[Plot]:
    """Draw one plot per family of defenses, or one over attacks if none was tried.

    Args:
        scenario: the trials.
        name: start of every id in the drawings, unique on the page.
    """
    cells = {
        (d.label, a): values(scenario.done(d, a), scenario.headline)
        for d in scenario.defenses
        for a in scenario.attacks
    }
    seen = [error for cell in cells.values() for error in cell]
    if not seen:
        return []
    least = min([error for error in seen if error > 0], default=1e-15) / _EXACT
    floors = _floors(scenario)
    drawn = [max(error, least) for error in seen] + list(floors.values())
    errors = _Errors(scenario, cells, floors, least, drawn)
    families = dict.fromkeys([d.family for d in scenario.defenses if not d.is_none])
    if not families:
        return [_by_attack(errors, f"{name}-attacks")]
    return [
        _by_strength(errors, family, f"{name}-{index}")
        for index, family in enumerate(families)
    ]


def _by_strength(errors: _Errors, family: str, name: str) -> Plot:
    scenario = errors.scenario
    members = [d for d in scenario.defenses if d.is_none or d.family == family]
    places, ticks = _places(members)
    with canvas(3.8, 3.0) as (figure, axes):
        log_axis(axes, errors.drawn)
        axes.set_xlim(min(places) - 0.4, max(places) + 0.4)
        _draw_chance(axes, errors, members, places)
        for index, attack in enumerate(scenario.contenders):
            found = [errors.cells[d.label, attack] for d in members]
            _draw_series(axes, places, found, index, errors.least)
        points = [
            (place, errors.floors[d.label])
            for place, d in zip(places, members, strict=True)
            if d.label in errors.floors
        ]
        if points:
            x, y = _level(points)
            axes.plot(x, y, color=INK, linestyle=_DASHED, linewidth=1.7, zorder=4)
            bottom = axes.get_ylim()[0]
            axes.fill_between(x, y, bottom, color=INK, alpha=0.06, linewidth=0)
            axes.set_ylim(bottom=bottom)
        axes.set_xticks(places, ticks, rotation=30 if len(ticks) > 6 else 0)
        option = next((d.strength[0] for d in members if d.strength), "")
        if option:
            axes.set_xlabel(f"{option.replace('_', ' ')} (stronger →)")
        axes.set_ylabel(described(scenario.headline).axis("of an example"))
        text = svg(figure, name)
    what = f"of {also(scenario.contenders)} against {family}"
    return Plot(family, text, _in_words(errors, what, members))


def _by_attack(errors: _Errors, name: str) -> Plot:
    scenario = errors.scenario
    with canvas(4.6, 3.0) as (figure, axes):
        log_axis(axes, errors.drawn)
        ends = [-0.5, max(1, len(scenario.contenders)) - 0.5]
        axes.set_xlim(*ends)
        _draw_chance(axes, errors, scenario.defenses[:1] * 2, ends)
        for index, attack in enumerate(scenario.contenders):
            found = [errors.cells[d.label, attack] for d in scenario.defenses]
            _draw_series(axes, [float(index)], found, index, errors.least)
        axes.set_xticks(range(len(scenario.contenders)), scenario.contenders)
        axes.set_ylabel(described(scenario.headline).axis("of an example"))
        text = svg(figure, name)
    words = _in_words(errors, "of each attack", scenario.defenses)
    return Plot("No defense", text, words)


def _in_words(errors: _Errors, what: str, members: Sequence[Defended]) -> str:
    """Say what a plot shows: the median error of each attack under each defense."""
    cells = []
    for defense in members:
        told = []
        for attack in errors.scenario.contenders:
            if errors.cells[defense.label, attack]:
                error = median(errors.cells[defense.label, attack])
                told.append(f"{attack} {number(error)}")
        cells.append(f"{defense.label}: {also(told, 6) or 'nothing finished'}")
    quantity = described(errors.scenario.headline).quantity
    return f"{quantity[:1].upper()}{quantity[1:]} {what}: {'; '.join(cells)}."


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


def _draw_series(
    axes: Axes,
    places: Sequence[float],
    found: Sequence[Sequence[float]],
    index: int,
    least: float,
) -> None:
    """Draw the medians of one attack as a line, and the spread as a band."""
    colour, marker = SERIES[index % len(SERIES)]
    rows = []
    for place, errors in sorted(zip(places, found, strict=True)):
        if errors:
            seen = np.maximum(errors, least)
            spread = np.quantile(seen, _SPREAD, method="nearest")
            rows.append((place, *spread, median(seen)))
    if rows:
        x, lows, highs, middle = zip(*rows, strict=True)
        axes.fill_between(x, lows, highs, color=colour, alpha=0.14, linewidth=0)
        axes.vlines(x, lows, highs, color=colour, alpha=0.45, linewidth=1.2)
        style = {"color": colour, "marker": marker, "markersize": 5.5}
        axes.plot(x, middle, **style, linewidth=1.8, zorder=3)


def _draw_chance(
    axes: Axes, errors: _Errors, members: Sequence[Defended], places: Sequence[float]
) -> None:
    """Draw the prior mean as a band over the whole width, other guesses as lines."""
    for index, baseline in enumerate(errors.scenario.baselines):
        cells = [errors.cells[d.label, baseline] for d in members]
        found = [error for cell in cells for error in cell]
        if not any(found):
            continue
        if index == 0:
            low, high = np.quantile(found, _SPREAD)
            axes.axhspan(low, high, color=MUTED, alpha=0.15, linewidth=0, zorder=0)
            axes.axhline(median(found) or 0.0, color=MUTED, linewidth=1.3, zorder=1)
        else:
            middle = [median(cell) for cell in cells]
            x, y = _level([(p, m) for p, m in zip(places, middle, strict=True) if m])
            axes.plot(x, y, color=MUTED, linestyle=":", linewidth=1.6, zorder=1)


def _level(points: Sequence[tuple[float, float]]) -> tuple[Sequence[float], ...]:
    """Join points from weak to strong; a single one becomes a short level line."""
    if len(points) == 1:
        place, value = points[0]
        return [place - 0.3, place + 0.3], [value, value]
    x, y = zip(*sorted(points), strict=True)
    return x, y


# --- convergence ----------------------------------------------------------------------


def convergence(scenario: Scenario, name: str) -> tuple[str, list[Plot]]:
    """Draw the course of every attack in one setting.

    Objectives of different attacks are different functions, so each has its own plot;
    the level that the same function takes at the truth is drawn in.

    Returns:
        the setting in words, and one plot per attack that left a trace there.
    """
    where, courses = "", list[tuple[int, TrialResult, np.ndarray]]()
    for defense in scenario.defenses:
        for seed in scenario.seeds:
            found = []
            for index, attack in enumerate(scenario.contenders):
                result = scenario.trial(defense, attack, seed)
                if result is not None and result.status == "done":
                    rows = np.reshape(result.trace, (-1, 4))
                    rows = rows[np.isfinite(rows[:, 3])]
                    if len(rows) > 1:
                        found.append((index, result, rows))
            # The setting with most traces; of equal ones no defense, the first seed.
            if len(found) > len(courses):
                where, courses = f"{defense.label}, seed {seed}", found
    plots = [
        _course(scenario.contenders[index], index, result, rows, f"{name}-{place}")
        for place, (index, result, rows) in enumerate(courses)
    ]
    return where, plots


def _course(
    attack: str, index: int, result: TrialResult, rows: np.ndarray, name: str
) -> Plot:
    """Draw the rows of a trace whose objective is finite, one line per restart."""
    at_truth, levels = result.objective_at_truth, rows[:, 3].tolist()
    positive = min(levels) > 0
    drawable = at_truth is not None and (at_truth > 0 or not positive)
    with canvas(3.2, 2.4) as (figure, axes):
        if positive:
            log_axis(axes, [*levels, at_truth] if drawable and at_truth else levels)
        for restart in np.unique(rows[:, 0]):
            seconds, objective = rows[rows[:, 0] == restart].T[2:]
            colour = SERIES[index % len(SERIES)][0]
            axes.plot(seconds, objective, color=colour, linewidth=1.6, alpha=0.85)
        if at_truth is not None and drawable:
            axes.axhline(at_truth, color=INK, linestyle=_DASHED, linewidth=1.2)
        axes.set_xlabel("CPU seconds")
        axes.set_ylabel("own objective")
        text = svg(figure, name)
    alt = (
        f"{attack}: objective from {number(levels[0])} to {number(result.objective)}; "
        f"at the truth {number(at_truth)}"
    )
    return Plot(attack, text, alt)
