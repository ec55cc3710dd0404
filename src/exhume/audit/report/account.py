"""What the audit cost, what failed, and numbers about each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exhume.audit.report.grouping import Scenario
from exhume.report.words import finite, median, number
from exhume.runs.records import TrialResult

__all__ = ["CostRow", "cost_rows", "facts", "failures", "in_clear"]


# Facts of the answer of one attack: a median over attacks would mean nothing.
_OF_ATTACKS = ("recovered_", "held_out", "null_level", "ordered_mse")


@dataclass(frozen=True)
class CostRow:
    """What one attack cost over the whole audit."""

    attack: str
    runs: int
    cpu: str
    total: str
    wall: str
    trial: str
    evaluations: str


def cost_rows(listed: Sequence[Scenario]) -> list[CostRow]:
    """Add up what every attack and every bound cost."""
    spent: dict[str, list[TrialResult]] = {}
    for scenario in listed:
        for name in (*scenario.attacks, *scenario.bounds):
            cells = [scenario.done(d, name) for d in scenario.defenses]
            spent.setdefault(name, []).extend(r for c in cells for r in c if r.cost)
    return [
        CostRow(
            attack=name,
            runs=len(results),
            cpu=number(median(r.cost.get("cpu_seconds") for r in results)),
            total=number(sum(finite(r.cost.get("cpu_seconds") for r in results))),
            wall=number(median(r.cost.get("wall_seconds") for r in results)),
            trial=number(median(r.seconds for r in results)),
            evaluations=number(median(r.cost.get("evaluations") for r in results)),
        )
        for name, results in spent.items()
        if results
    ]


def facts(scenario: Scenario) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Tabulate the numbers about each setting: their names, and medians by defense."""
    told = {name for r in scenario.results for name in r.facts}
    names = sorted(name for name in told if not name.startswith(_OF_ATTACKS))
    rows = []
    for defense in scenario.defenses:
        cell = [
            r
            for (label, _), results in scenario.trials.items()
            if label == defense.label
            for r in results
        ]
        medians = [number(median(r.facts.get(name) for r in cell)) for name in names]
        rows.append((defense.label, medians))
    return [name.replace("_", " ") for name in names], rows


def failures(listed: Sequence[Scenario]) -> list[tuple[str, str, int, str]]:
    """List what did not run: attack or bound, defense, seed and the reason."""
    return [
        (name, defense, result.spec.seed, result.reason or "no reason was given")
        for scenario in listed
        for (defense, name), results in scenario.trials.items()
        for result in results
        if result.status == "failed"
    ]


def in_clear(listed: Sequence[Scenario]) -> list[tuple[str, str]]:
    """List the tensors that each defense left untouched."""
    found: dict[str, str] = {}
    for scenario in listed:
        for (defense, _), results in scenario.trials.items():
            for result in results:
                if result.released_in_clear and result.spec.defenses:
                    found.setdefault(defense, ", ".join(result.released_in_clear))
    return sorted(found.items())
