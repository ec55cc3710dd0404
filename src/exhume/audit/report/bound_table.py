"""Every bound under every defense: its value and assumptions, or why there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from exhume.audit.report.grouping import Defended, Scenario, values
from exhume.audit.report.plots import bound_mse
from exhume.audit.report.words import finite, median, number

__all__ = ["BoundRow", "bound_rows"]


@dataclass(frozen=True)
class BoundRow:
    """One bound under one defense: a value, or why there is none."""

    defense: str
    bound: str
    value: str
    error: str
    seeds: int
    ratio: str
    assumptions: tuple[str, ...]
    reference: str
    details: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]


def bound_rows(scenario: Scenario) -> list[BoundRow]:
    """Summarise every bound under every defense by its mean over seeds."""
    return [
        _bound_row(scenario, defense, bound)
        for defense in scenario.defenses
        for bound in scenario.bounds
        if (defense.label, bound) in scenario.trials
    ]


def _bound_row(scenario: Scenario, defense: Defended, bound: str) -> BoundRow:
    tried = scenario.trials[defense.label, bound]
    done = scenario.done(defense, bound)
    level = bound_mse(done)
    first = (done[0].bound or {}) if done else {}
    details = {
        key: median((r.bound or {}).get("details", {}).get(key) for r in done)
        for key in first.get("details", {})
    }
    details["prior fit (1 fits)"] = median(r.facts.get("prior_fit") for r in done)
    reasons = Counter(r.reason for r in tried if r.status != "done")
    return BoundRow(
        defense=defense.label,
        bound=bound,
        value=number(level[0] if level else None),
        error=number(level[1], 2) if level else "",
        seeds=len(done),
        ratio=_ratio(scenario, defense, level[0] if level else None),
        assumptions=tuple(first.get("assumptions", ())),
        reference=str(first.get("reference", "")),
        details=tuple(
            (k.replace("_", " "), number(v))
            for k, v in details.items()
            if v is not None
        ),
        reasons=tuple(sorted(reason for reason in reasons if reason)),
    )


def _ratio(scenario: Scenario, defense: Defended, bound: float | None) -> str:
    """Say how many times the bound the smallest average error of an attack is.

    A bound holds for examples in a known order, so errors are paired by label where
    that is possible, and matched elsewhere.
    """
    means = []
    for attack in scenario.contenders:
        done = scenario.done(defense, attack)
        in_order = finite(r.facts.get("ordered_mse") for r in done)
        errors = in_order if len(in_order) == len(done) else values(done, "mse")
        if errors:
            means.append((sum(errors) / len(errors), attack))
    if not means or not bound:
        return ""
    least, attack = min(means)
    return f"{number(least)} ({attack}), {number(least / bound, 2)} × the bound"
