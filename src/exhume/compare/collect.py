"""From measured utilities and finished trials to points and frontiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from exhume.audit.report.bounds import worst_account
from exhume.audit.report.results import Scenario, described, scenarios
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
    guesses = undefended.strongest.guesses if undefended.strongest else []
    names = sorted(set.intersection(*(set(result.values) for result in plain)))
    return Comparison(
        folder=folder,
        settings=settings,
        undefended=undefended,
        frontiers=tuple(_frontier(settings, scenario, found) for found in searches),
        baseline={n: fmean(result.values[n] for result in plain) for n in names},
        chance=min(guesses, default=None),
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
    found, dropped = _strongest(scenario, stack)
    return Point(
        strength=strength,
        position=position,
        loss=loss,
        loss_interval=interval,
        strongest=found,
        floor=_floor(scenario, stack),
        privacy=None if strength is None else _privacy(scenario, stack),
        in_order=_in_order(scenario, stack),
        dropped=dropped,
    )


def _cells(
    scenario: Scenario, stack: tuple[Options, ...], name: str
) -> list[TrialResult]:
    return scenario.trials.get((defense_label(stack), name), [])


def _strongest(
    scenario: Scenario, stack: tuple[Options, ...]
) -> tuple[Strongest | None, dict[str, str]]:
    """Return the strongest attack, and why others are left out.

    Whoever attacks can guess as well: of each example counts the smaller error of the
    two, so that an attack that is exact on a few examples and lost on the others is
    not taken for a harmless one.
    """
    guesses = {
        name: _by_seed(_cells(scenario, stack, name), _each)
        for name in sorted(scenario.baselines)
    }
    complete = {n: g for n, g in guesses.items() if set(g) == set(scenario.seeds)}
    table = {n: [fmean(g[s]) for s in scenario.seeds] for n, g in complete.items()}
    least = min(table, key=lambda name: fmean(table[name]), default=None)
    dropped: dict[str, str] = {}
    for label in scenario.contenders:
        cell = _cells(scenario, stack, label)
        failed = [r.reason for r in cell if r.status == "failed"]
        if failed:
            # A guess in its place would make a crash look like protection.
            dropped[label] = failed[0]
            continue
        found = _by_seed(cell, _each)
        if not found:
            continue
        # Where an attack has no answer, its user still has the guess.
        answers = {r.spec.seed for r in cell}
        fallback = {} if least is None else complete[least]
        row = [
            _better(found.get(seed), fallback.get(seed))
            for seed in scenario.seeds
            if seed in answers
        ]
        errors = [value for value in row if value is not None]
        if len(errors) == len(scenario.seeds):
            table[label] = errors
    return strongest(table, frozenset(scenario.baselines)), dropped


def _in_order(scenario: Scenario, stack: tuple[Options, ...]) -> Strongest | None:
    """Return the strongest attack by the errors that a bound is about.

    Of a single example there is nothing to pair. The better of an attack and a guess is
    no attack, for the truth chooses: it may lie below a bound that holds.
    """
    error = _ordered_mse if scenario.spec.batch_size > 1 else _mean
    cells = {label: _cells(scenario, stack, label) for label in scenario.attacks}
    found = {label: _by_seed(cell, error) for label, cell in cells.items()}
    guesses = [found[label] for label in sorted(scenario.baselines)]
    guess = next((g for g in guesses if set(g) == set(scenario.seeds)), {})
    table = {}
    for label, errors in found.items():
        silent = {r.spec.seed for r in cells[label] if r.status == "not-applicable"}
        row = {s: e for s, e in guess.items() if s in silent} | errors
        if errors and set(row) == set(scenario.seeds):
            table[label] = [row[seed] for seed in scenario.seeds]
    return strongest(table, frozenset(scenario.baselines))


_T = TypeVar("_T")


def _by_seed(
    results: Sequence[TrialResult], measure: Callable[[TrialResult], _T | None]
) -> dict[int, _T]:
    """Return what trials that ended have, by seed."""
    done = [(r.spec.seed, measure(r)) for r in results if r.status == "done"]
    return {seed: value for seed, value in done if value is not None}


def _each(result: TrialResult) -> list[float] | None:
    """Return the error of every example, if all have one."""
    values = result.scores.get(result.headline, [])
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return finite if finite and len(finite) == len(values) else None


def _mean(result: TrialResult) -> float | None:
    values = _each(result)
    return None if values is None else fmean(values)


def _better(errors: list[float] | None, guess: list[float] | None) -> float | None:
    """Return the mean over examples of the smaller error; None if neither is known."""
    if errors is None or guess is None:
        known = errors or guess
        return None if known is None else fmean(known)
    return fmean(map(min, errors, guess))


def _ordered_mse(result: TrialResult) -> float | None:
    value = result.facts.get("ordered_mse")
    return value if value is not None and math.isfinite(value) else None


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
