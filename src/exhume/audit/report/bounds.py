"""Bounds: what no attack beats, for whom, beside what ε promises."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from exhume.audit.report.results import Defended, Scenario, values
from exhume.report.words import finite, median, number
from exhume.runs.records import (
    BOUNDED_METRIC,
    SQUARED_ERROR,
    binds_every_attack,
    is_error,
    level,
)
from exhume.trials.trial import whom

__all__ = [
    "BoundRow",
    "Exposed",
    "Exposure",
    "Promise",
    "bound_rows",
    "exposure",
    "mean_in_order",
    "promises",
    "tightest",
    "told_epsilon",
    "worst_account",
]


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


def mean_in_order(scenario: Scenario, defense: Defended, attack: str) -> float | None:
    """Return the mean squared error of examples in a known order, as bounds have it.

    The best assignment looks at the truth, so its error may lie below a bound. None
    where the labels of some batch do not tell the examples apart.
    """
    done = scenario.done(defense, attack)
    errors = finite(r.facts.get("ordered_mse") for r in done)
    if scenario.spec.batch_size == 1:
        errors = values(done, BOUNDED_METRIC)
    return fmean(errors) if errors and len(errors) >= len(done) else None


def _ratio(scenario: Scenario, defense: Defended, bound: float | None) -> str:
    """Say how many times the bound the smallest average error of an attack is."""
    means = [
        (mean, attack)
        for attack in scenario.contenders
        if (mean := mean_in_order(scenario, defense, attack)) is not None
    ]
    if not bound or not scenario.contenders:
        return ""
    if not means:
        return "– (labels do not tell the examples apart, and the bound is in order)"
    least, attack = min(means)
    return f"{number(least)} ({attack}), {number(least / bound, 2)} × the bound"


# --- ε beside the reconstruction floor ------------------------------------------------

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
    accounts = [
        r.privacy
        for (label, _), cell in scenario.trials.items()
        for r in cell
        if label == defense.label and r.privacy is not None
    ]
    if not accounts and floor is None:
        return None
    worst = worst_account(accounts)
    priors = [
        r.arrays["prior_map"] for r in scenario.results if "prior_map" in r.arrays
    ]
    guess = median([float(prior.mean(dtype=np.float64)) for prior in priors])
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
    ranked = sorted(accounts, key=lambda a: (a["epsilon"] is None, a["epsilon"] or 0.0))
    return ranked[-1] if ranked else None


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
    """Go on with what no attack gets below, if the prior is right."""
    if not floor:
        return "and no bound says that the data cannot be read"
    below = (
        f"on data that follow the prior no attack gets below a mean squared error of "
        f"{number(floor)} on average"
    )
    join = "and" if promised else "yet"
    if not guess:
        return f"{join} {below}"
    part = f"{number(100 * floor / guess, 2)} % of the error without the release"
    if floor / guess < _NOTHING:
        return f"and the bound ({number(floor)}, {part}) protects nothing"
    return f"{join} {below}, {part}"


# --- who is most exposed --------------------------------------------------------------

#: examples of one batch that are listed under each defense; the others are counted
_LISTED = 8
#: standard errors of the bound by which two examples' bounds must differ
_ERRORS = 3.0
#: seeds whose batches are listed; the numbers of the others are in the JSON
_SEEDS = 3


@dataclass(frozen=True)
class Exposed:
    """One example under one defense.

    Attributes:
        defense: label.
        rank: 1 for the most exposed.
        example: number within the batch, from 1.
        label: its class, or "".
        floor: mean squared error that no attack gets below on average, in print.
        error: least error of an attack on this example, in print.
        attack: which one, or "".
        chance: the best guess's error, in print.
        beaten: the attack's error is below that of every guess.
    """

    defense: str
    rank: int
    example: int
    label: str
    floor: str
    error: str
    attack: str
    chance: str
    beaten: bool


@dataclass(frozen=True)
class Exposure:
    """The batch of one seed.

    Attributes:
        seed: of the batch.
        rows: by defense, the most exposed first.
        left_out: how many examples of every defense are not listed.
    """

    seed: int
    rows: tuple[Exposed, ...]
    left_out: int


def exposure(scenario: Scenario) -> list[Exposure]:
    """Rank the examples of a batch; empty where a batch holds one example.

    The bound decides where it differs by more than its error, and the strongest attack
    elsewhere: a bound does not look at the private example, only at its label.
    """
    size = scenario.spec.batch_size
    if size < 2:
        return []
    made = []
    for seed in scenario.seeds[:_SEEDS]:
        rows = [
            row
            for defense in scenario.defenses
            for row in _ranked(scenario, defense, seed)[:_LISTED]
        ]
        if rows:
            made.append(Exposure(seed, tuple(rows), max(0, size - _LISTED)))
    return made


def _ranked(scenario: Scenario, defense: Defended, seed: int) -> list[Exposed]:
    size = scenario.spec.batch_size
    floors, apart = _floors(scenario, defense, seed)
    attacks = _least(scenario, scenario.contenders, defense, seed)
    guesses = _least(scenario, tuple(sorted(scenario.baselines)), defense, seed)
    if not floors and not attacks:
        return []
    nothing = (math.inf, "")

    def key(i: int) -> tuple[float, float, int]:
        return floors.get(i, 0.0) if apart else 0.0, attacks.get(i, nothing)[0], i

    order = sorted(range(size), key=key)
    return [
        Exposed(
            defense=defense.label,
            rank=rank,
            example=i + 1,
            label=_label(scenario, defense, seed, i),
            floor=number(floors.get(i)),
            error=number(attacks[i][0]) if i in attacks else "–",
            attack=attacks.get(i, nothing)[1],
            chance=number(guesses[i][0]) if i in guesses else "–",
            beaten=attacks.get(i, nothing)[0] < guesses.get(i, nothing)[0],
        )
        for rank, i in enumerate(order, start=1)
    ]


def _floors(
    scenario: Scenario, defense: Defended, seed: int
) -> tuple[dict[int, float], bool]:
    """Return the highest bound on each example, and whether they tell examples apart.

    Bounds for every attack only, and only where attacks are ranked by the squared
    error, which they bound. Examples of one label have equal bounds but for the
    Monte-Carlo error.
    """
    best: dict[int, float] = {}
    error = 0.0
    if scenario.headline != BOUNDED_METRIC:
        return best, False
    for bound in scenario.bounds:
        result = scenario.trial(defense, bound, seed)
        if result is None or not (is_error(result) and binds_every_attack(result)):
            continue
        record = result.bound or {}
        error = max(error, record["mse_standard_error"])
        for i, value in enumerate(record.get("per_example", ())):
            best[i] = max(float(value), best.get(i, 0.0))
    spread = max(best.values(), default=0.0) - min(best.values(), default=0.0)
    return best, spread > _ERRORS * error


def _least(
    scenario: Scenario, attacks: tuple[str, ...], defense: Defended, seed: int
) -> dict[int, tuple[float, str]]:
    """Return the least error on each example, and whose it is."""
    best: dict[int, tuple[float, str]] = {}
    for attack in attacks:
        result = scenario.trial(defense, attack, seed)
        errors = [] if result is None else result.scores.get(scenario.headline, [])
        for i, error in enumerate(errors):
            if error is not None and not math.isnan(error):
                best[i] = min((error, attack), best.get(i, (math.inf, "")))
    return best


def _label(scenario: Scenario, defense: Defended, seed: int, example: int) -> str:
    for name in (*scenario.attacks, *scenario.bounds):
        result = scenario.trial(defense, name, seed)
        if result is not None and example < len(result.true_labels):
            label = result.true_labels[example]
            return str(label) if isinstance(label, int) else ""
    return ""
