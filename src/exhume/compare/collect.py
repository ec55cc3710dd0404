"""From measured utilities and finished trials to points and frontiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from exhume.audit.report.bounds import worst_account
from exhume.audit.report.described import described
from exhume.audit.report.grouping import Scenario, scenarios
from exhume.audit.settings import AuditSettings
from exhume.compare.calibration import Step
from exhume.compare.findings import Comparison
from exhume.compare.frontier import Floor, Frontier, Point, Strongest, strongest
from exhume.compare.search import Searched
from exhume.compare.settings import CompareSettings
from exhume.report.words import defense_label
from exhume.runs.records import (
    BOUNDED_METRIC,
    Options,
    TrialResult,
    binds_every_attack,
    is_error,
    level,
)
from exhume.trials.utility import UtilityResult

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
    undefended = _point(scenario, (), None, 0.0, 0.0, (0.0, 0.0))
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
        metric=scenario.headline,
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
            _point(
                scenario, stack, step.strength, step.position, step.loss, step.interval
            )
        )
    ordered = tuple(sorted(points, key=lambda p: (p.loss, p.position)))
    return Frontier(found.family, tuple(settled), ordered, found.failure)


def _point(
    scenario: Scenario,
    stack: tuple[Options, ...],
    strength: float | None,
    position: float,
    loss: float,
    interval: tuple[float, float],
) -> Point:
    found, dropped = _strongest(scenario, stack, _headline)
    in_order = found
    # Of a single example there is nothing to pair.
    if scenario.spec.batch_size > 1:
        in_order, _ = _strongest(scenario, stack, _ordered_mse)
    return Point(
        strength=strength,
        position=position,
        loss=loss,
        loss_interval=interval,
        strongest=found,
        floor=_floor(scenario, stack),
        privacy=None if strength is None else _privacy(scenario, stack),
        in_order=in_order,
        dropped=dropped,
    )


def _cells(
    scenario: Scenario, stack: tuple[Options, ...], name: str
) -> list[TrialResult]:
    return scenario.trials.get((defense_label(stack), name), [])


#: error of a trial that ended, or None if it has no finite one
_Error = Callable[[TrialResult], float | None]


def _strongest(
    scenario: Scenario, stack: tuple[Options, ...], error: _Error
) -> tuple[Strongest | None, dict[str, str]]:
    """Return the strongest attack, and why others are left out."""
    guess = _errors(_cells(scenario, stack, _GUESS), error)
    table: dict[str, list[float]] = {}
    dropped: dict[str, str] = {}
    for label in scenario.attacks:
        cell = _cells(scenario, stack, label)
        failed = [r.reason for r in cell if r.status == "failed"]
        if failed:
            # A guess in its place would make a crash look like protection.
            dropped[label] = failed[0]
            continue
        found = _errors(cell, error)
        if not found:
            continue
        # Where an attack has no answer, its user still has the guess.
        silent = {r.spec.seed for r in cell if _headline(r) is None}
        fallback = {seed: guess.get(seed) for seed in silent}
        row = [found.get(seed, fallback.get(seed)) for seed in scenario.seeds]
        complete = [value for value in row if value is not None]
        if len(complete) == len(row):
            table[label] = complete
    return strongest(table, frozenset(scenario.baselines)), dropped


def _headline(result: TrialResult) -> float | None:
    values = result.scores.get(result.headline, [])
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return fmean(finite) if finite and len(finite) == len(values) else None


def _ordered_mse(result: TrialResult) -> float | None:
    value = result.facts.get("ordered_mse")
    return value if value is not None and math.isfinite(value) else None


def _errors(results: Sequence[TrialResult], error: _Error) -> dict[int, float]:
    """Return the error by seed, of the trials that ended."""
    done = [(r.spec.seed, error(r)) for r in results if r.status == "done"]
    return {seed: value for seed, value in done if value is not None}


def _floor(scenario: Scenario, stack: tuple[Options, ...]) -> Floor:
    """Return the highest bound that binds every attack, or why there is none."""
    if scenario.headline != BOUNDED_METRIC and scenario.bounds:
        other = described(scenario.headline).quantity
        why = f"bounds are on the squared error, and attacks are ranked by the {other}"
        return Floor("", None, reason=why)
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
