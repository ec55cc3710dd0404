"""Who in a batch is most exposed: its examples, ranked by what no attack gets below."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exhume.audit.report.grouping import Defended, Scenario
from exhume.report.words import number
from exhume.trials.bound_record import BOUNDED_METRIC, binds_every_attack, is_error

__all__ = ["Exposed", "Exposure", "exposure"]

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
