"""The course of each attack: its own objective against CPU seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exhume.audit.report.grouping import Scenario
from exhume.report.figure import INK, SERIES, Plot, canvas, log_axis, svg
from exhume.report.words import number
from exhume.runs.records import TrialResult

__all__ = ["convergence"]


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
