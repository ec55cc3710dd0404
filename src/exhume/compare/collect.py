"""From measured utilities and finished trials to points and frontiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from exhume.audit.bound_record import binds_every_attack, is_error, level
from exhume.audit.naming import defense_label
from exhume.audit.records import Options, TrialResult
from exhume.audit.report.grouping import Scenario, scenarios
from exhume.audit.report.promises import worst_account
from exhume.audit.settings import AuditSettings
from exhume.compare.calibration import Step
from exhume.compare.frontier import Floor, Frontier, Point, Strongest, strongest
from exhume.compare.run import Comparison
from exhume.compare.search import Searched
from exhume.compare.settings import CompareSettings
from exhume.compare.utility import UtilityResult

__all__ = ["collect"]

_GUESS = "prior-mean"


def collect(
    settings: CompareSettings,
    attacks: AuditSettings,
    plain: Sequence[UtilityResult],
    searches: Sequence[Searched],
    results: Sequence[TrialResult],
    folder: Path,
) -> Comparison:
    """Put a finished comparison together.

    Args:
        settings: of the comparison.
        attacks: of its audit.
        plain: undefended measurements.
        searches: of the families, ended.
        results: every trial of the audit.
        folder: of the run.
    """
    (scenario,) = scenarios(attacks, results)
    undefended = Point(
        None, 0.0, 0.0, (0.0, 0.0), _strongest(scenario, ()), _floor(scenario, ())
    )
    names = sorted(set.intersection(*(set(result.values) for result in plain)))
    return Comparison(
        folder=folder,
        settings=settings,
        undefended=undefended,
        frontiers=tuple(_frontier(settings, scenario, found) for found in searches),
        baseline={n: fmean(result.values[n] for result in plain) for n in names},
        chance=None
        if undefended.strongest is None
        else undefended.strongest.errors.get(_GUESS),
        report=folder / "report.html",
    )


def _frontier(
    settings: CompareSettings, scenario: Scenario, found: Searched
) -> Frontier:
    assert found.family is not None
    settled = found.settled(settings)
    steps: dict[float, Step] = {
        s.step.strength: s.step for s in settled if s.step is not None
    }
    points = []
    for step in steps.values():
        stack = found.family.at(step.strength)
        points.append(
            Point(
                strength=step.strength,
                position=step.position,
                loss=step.loss,
                loss_interval=step.interval,
                strongest=_strongest(scenario, stack),
                floor=_floor(scenario, stack),
                privacy=_privacy(scenario, stack),
            )
        )
    ordered = tuple(sorted(points, key=lambda p: (p.loss, p.position)))
    return Frontier(found.family, tuple(settled), ordered, found.failure)


def _cells(
    scenario: Scenario, stack: tuple[Options, ...], name: str
) -> list[TrialResult]:
    return scenario.trials.get((defense_label(stack), name), [])


def _strongest(scenario: Scenario, stack: tuple[Options, ...]) -> Strongest | None:
    guess = _errors(_cells(scenario, stack, _GUESS))
    table: dict[str, list[float]] = {}
    for label in scenario.attacks:
        found = _errors(_cells(scenario, stack, label))
        if not found:
            continue
        # Where an attack does not end, its user still has the guess.
        row = [found.get(seed, guess.get(seed)) for seed in scenario.seeds]
        complete = [value for value in row if value is not None]
        if len(complete) == len(row):
            table[label] = complete
    return strongest(table, scenario.baselines)


def _errors(results: Sequence[TrialResult]) -> dict[int, float]:
    """Return the mean squared error by seed, of the trials that ended."""
    found = {}
    for result in results:
        values = result.scores.get("mse", []) if result.status == "done" else []
        finite = [v for v in values if v is not None and math.isfinite(v)]
        if finite and len(finite) == len(values):
            found[result.spec.seed] = fmean(finite)
    return found


def _floor(scenario: Scenario, stack: tuple[Options, ...]) -> Floor:
    """Return the highest bound that binds every attack, or why there is none."""
    best: Floor | None = None
    reasons: dict[str, None] = {}
    for name in scenario.bounds:
        cell = _cells(scenario, stack, name)
        strict = [r for r in cell if is_error(r) and binds_every_attack(r)]
        reasons |= dict.fromkeys(r.reason for r in cell if r.reason)
        found = level(strict) if len(strict) == len(cell) else None
        if found is not None and (best is None or found.value > (best.value or 0)):
            best = Floor(name, found.value, found.standard_error)
    if best is not None:
        return best
    return Floor("", None, reason=next(iter(reasons), "no bound was asked for"))


def _privacy(scenario: Scenario, stack: tuple[Options, ...]) -> dict[str, Any] | None:
    """Return the account of the seed with the largest ε."""
    label = defense_label(stack)
    cells = [cell for (name, _), cell in scenario.trials.items() if name == label]
    return worst_account(
        [r.privacy for cell in cells for r in cell if r.privacy is not None]
    )
