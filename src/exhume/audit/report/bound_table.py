"""Every bound under every defense: its value and assumptions, or why there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from exhume.audit.report.grouping import Defended, Scenario, values
from exhume.report.words import finite, median, number
from exhume.trials.bound_record import (
    BOUNDED_METRIC,
    SQUARED_ERROR,
    binds_every_attack,
    is_error,
    level,
    whom,
)

__all__ = ["BoundRow", "bound_rows", "tightest"]


@dataclass(frozen=True)
class BoundRow:
    """One bound under one defense: a value, or why there is none.

    Attributes:
        defense: label.
        bound: label.
        quantity: what is bounded, in words.
        mean: the value over the seeds, or None.
        value: the same in print.
        error: its standard error in print.
        seeds: how many gave a value.
        binds: whom it binds if not every attack, else "".
        ratio: how close the strongest attack comes, where they may be compared.
        assumptions: under which it holds.
        reference: where it was proved.
        details: further numbers.
        reasons: why it does not hold.
        strict: it is on the squared error and binds every attack.
    """

    defense: str
    bound: str
    quantity: str
    mean: float | None
    value: str
    error: str
    seeds: int
    binds: str
    ratio: str
    assumptions: tuple[str, ...]
    reference: str
    details: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]
    strict: bool


def bound_rows(scenario: Scenario) -> list[BoundRow]:
    """Summarise every bound under every defense by its mean over seeds."""
    return [
        _bound_row(scenario, defense, bound)
        for defense in scenario.defenses
        for bound in scenario.bounds
        if (defense.label, bound) in scenario.trials
    ]


def tightest(scenario: Scenario) -> dict[str, BoundRow]:
    """Return the highest bound on the error of every attack, by defense."""
    best: dict[str, BoundRow] = {}
    for row in bound_rows(scenario):
        known = best.get(row.defense)
        if row.strict and (known is None or (known.mean or 0) < (row.mean or 0)):
            best[row.defense] = row
    return best


def _bound_row(scenario: Scenario, defense: Defended, bound: str) -> BoundRow:
    tried = scenario.trials[defense.label, bound]
    done = [r for r in scenario.done(defense, bound) if r.bound is not None]
    mean = level(done)
    first = (done[0].bound or {}) if done else {}
    details = {
        key: median((r.bound or {}).get("details", {}).get(key) for r in done)
        for key in first.get("details", {})
        if key != "prior_fit"  # told below, of bounds that do not tell it as well
    }
    details["prior fit (1 fits)"] = median(r.facts.get("prior_fit") for r in done)
    reasons = Counter(r.reason for r in tried if r.status != "done")
    everyone = all(map(binds_every_attack, done))
    strict = bool(done) and everyone and all(map(is_error, done))
    value = mean.value if mean else None
    return BoundRow(
        defense=defense.label,
        bound=bound,
        quantity=str(first.get("quantity", SQUARED_ERROR)) if done else "",
        mean=value,
        value=number(value),
        error=number(mean.standard_error, 2) if mean else "",
        seeds=len(done),
        binds="" if everyone else whom(done[0]),
        ratio=_ratio(scenario, defense, value) if strict else "",
        assumptions=tuple(first.get("assumptions", ())),
        reference=str(first.get("reference", "")),
        details=tuple(
            (k.replace("_", " "), number(v))
            for k, v in details.items()
            if v is not None
        ),
        reasons=tuple(sorted(reason for reason in reasons if reason)),
        strict=strict,
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
        errors = (
            in_order if len(in_order) == len(done) else values(done, BOUNDED_METRIC)
        )
        if errors:
            means.append((sum(errors) / len(errors), attack))
    if not means or not bound:
        return ""
    least, attack = min(means)
    return f"{number(least)} ({attack}), {number(least / bound, 2)} × the bound"
