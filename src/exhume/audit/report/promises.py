"""ε beside the reconstruction floor: what is promised, and what no attack beats.

The two answer different questions: ε bounds what one release tells about whether an
example took part; the floor bounds how well it can be reconstructed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from exhume.audit.report.bound_table import BoundRow, tightest
from exhume.audit.report.grouping import Defended, Scenario
from exhume.report.words import finite, median, number

__all__ = ["Promise", "promises", "told_epsilon", "worst_account"]

# Tiers of Ponomareva et al., How to DP-fy ML, JAIR 2023, section 5.2.
_STRONG, _REASONABLE = 1.0, 10.0
#: a floor below this share of the error without the release protects nothing
_NOTHING = 0.01


@dataclass(frozen=True)
class Promise:
    """What is promised under one defense.

    Attributes:
        defense: label.
        epsilon: in print: a number, ∞, or "not accounted".
        terms: what ε means nothing without: δ, unit, adjacency, sampling, rounds.
        floor: the highest bound for every attack in print, or "–".
        error: the same as a root-mean-square error.
        guess: the bound if nothing is released, the same for every defense.
        words: both in one sentence or two.
    """

    defense: str
    epsilon: str
    terms: str
    floor: str
    error: str
    guess: str
    words: str


def promises(scenario: Scenario) -> list[Promise]:
    """Put ε and the floor side by side for each defense; empty without either."""
    floors = tightest(scenario)
    made = [_promise(scenario, d, floors.get(d.label)) for d in scenario.defenses]
    return [promise for promise in made if promise is not None]


def _promise(
    scenario: Scenario, defense: Defended, floor: BoundRow | None
) -> Promise | None:
    results = [
        r
        for (d, _), cell in scenario.trials.items()
        if d == defense.label
        for r in cell
    ]
    accounts = [r.privacy for r in results if r.privacy is not None]
    if not accounts and floor is None:
        return None
    worst = worst_account(accounts)
    guess = median(
        float(r.arrays["prior_map"].mean(dtype=np.float64))
        for r in scenario.results
        if "prior_map" in r.arrays
    )
    mean = None if floor is None else floor.mean
    said, promised = _said(worst)
    return Promise(
        defense=defense.label,
        epsilon=told_epsilon(worst),
        terms="" if worst is None else _terms(worst),
        floor=number(mean),
        error=number(math.sqrt(mean), 2) if mean else "–",
        guess=number(guess),
        words=f"{said}; {_held(mean, guess, promised=promised)}.",
    )


def worst_account(accounts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the account with the largest ε over the seeds; unknown is the worst."""
    unknown = [a for a in accounts if a["epsilon"] is None]
    ranked = sorted(accounts, key=lambda a: a["epsilon"] or 0.0)
    return (unknown or ranked[-1:] or [None])[-1]


def told_epsilon(account: dict[str, Any] | None) -> str:
    """Write ε: a number, ∞, or that it is not accounted."""
    if account is None or account["epsilon"] is None:
        return "not accounted"
    return number(account["epsilon"])


def _terms(account: dict[str, Any]) -> str:
    """Write what ε means nothing without; "" where it is infinite or not known."""
    if not finite([account["epsilon"]]) or math.isinf(account["epsilon"]):
        return ""
    rounds = "one release" if account["steps"] == 1 else f"{account['steps']} releases"
    sampled = (
        "no sampling"
        if account["sampling_rate"] == 1
        else f"Poisson sampling at rate {account['sampling_rate']:g}"
    )
    unit = account["unit"] or "unit"
    adjacency = {
        "add-or-remove": f"one {unit} added or removed",
        "replace": f"one {unit} replaced",
    }.get(account["adjacency"], str(account["adjacency"]))
    return f"δ = {number(account['delta'])}, {adjacency}, {rounds}, {sampled}"


def _said(account: dict[str, Any] | None) -> tuple[str, bool]:
    """Say what ε promises, and whether that is anything."""
    if account is None:
        return "ε was not asked for when this was run", False
    epsilon = account["epsilon"]
    why = "; ".join(account["reasons"])
    if epsilon is None:
        return f"ε is not accounted ({why})", False
    if math.isinf(epsilon):
        return f"ε = ∞ says nothing ({why})", False
    if epsilon > _REASONABLE:
        return f"ε = {number(epsilon)} says nothing", False
    how = "a strong" if epsilon <= _STRONG else "a moderate"
    return f"ε = {number(epsilon)} is {how} promise", True


def _held(floor: float | None, guess: float | None, *, promised: bool) -> str:
    """Go on with what no attack gets below."""
    if not floor:
        return "and no bound says that the data cannot be read"
    below = f"no attack gets below a mean squared error of {number(floor)} on average"
    join = "and" if promised else "yet"
    if not guess:
        return f"{join} {below}"
    part = f"{number(100 * floor / guess, 2)} % of the error without the release"
    if floor / guess < _NOTHING:
        return f"and the bound ({number(floor)}, {part}) protects nothing"
    return f"{join} {below}, {part}"
