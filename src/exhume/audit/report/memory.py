"""What a training has left in the weights: shares, the null beside them, and a map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from exhume.audit.report.results import Defended, Scenario, drawing, examples_of
from exhume.report.pictures import Picture
from exhume.report.words import finite, median, number
from exhume.runs.records import TrialResult
from exhume.trials.memorised import LEVELS

__all__ = ["Memory", "Remembered", "memory"]

# Examples shown in the map of one seed.
_MOST = 24
# An attack residual this far below that of the truth means over-fitting.
_OVERFIT = 0.3
# With fewer parameters per unknown than this, labels are fitted but data are not held.
_FEW = 10.0
# If the truth itself leaves this share, the attack's equation does not hold.
_UNEXPLAINED = 0.9


@dataclass(frozen=True)
class Remembered:
    """One private example beside the candidate of an attack.

    Attributes:
        truth: the example.
        guess: the candidate that correlates best with it.
        correlation: of the two, in print.
        told: it is above what any image never trained on reaches.
    """

    truth: Picture
    guess: Picture
    correlation: str
    told: bool


@dataclass(frozen=True)
class Memory:
    """What one attack read from the weights under one defense.

    Attributes:
        defense: label.
        attack: name.
        shares: of private examples above each level, in print.
        null: the same of examples never trained on.
        residual: of the attack's answer, in print.
        oracle: the same at the true examples.
        per_unknown: parameters per unknown, in print.
        words: what this means.
        notes: what the attack said of itself for the first seed.
        seed: the first one.
        map: the private examples of the first seed, the best recovered first.
    """

    defense: str
    attack: str
    shares: tuple[str, ...]
    null: tuple[str, ...]
    residual: str
    oracle: str
    per_unknown: str
    words: tuple[str, ...]
    notes: tuple[str, ...]
    seed: int
    map: tuple[Remembered, ...]


def memory(scenario: Scenario) -> list[Memory]:
    """Say for each attack what it recovered of a training, beside the null."""
    rows = []
    for defense in scenario.defenses:
        for attack in scenario.contenders:
            done = scenario.done(defense, attack)
            if any("null_level" in r.facts for r in done):
                rows.append(_memory(defense, attack, done))
    return rows


def _memory(defense: Defended, attack: str, done: list[TrialResult]) -> Memory:
    def share(name: str) -> tuple[str, ...]:
        found = [median(r.facts.get(f"{name}_{t}") for r in done) for t in LEVELS]
        return tuple("–" if v is None else f"{100 * v:.3g} %" for v in found)

    residual = median(r.objective for r in done)
    oracle = median(r.objective_at_truth for r in done)
    ratio = _per_unknown(done)
    return Memory(
        defense=defense.label,
        attack=attack,
        shares=share("recovered"),
        null=share("held_out"),
        residual=number(residual),
        oracle=number(oracle),
        per_unknown=number(ratio),
        words=(
            *_words(done, examples_of(done)[0]),
            *_fitted(residual, oracle),
            *_explained(done, oracle),
            *_held(ratio),
        ),
        notes=done[0].notes,
        seed=done[0].spec.seed,
        map=_map(done[0]),
    )


def _per_unknown(done: list[TrialResult]) -> float | None:
    sizes = [(r.facts.get("parameters"), r.facts.get("unknowns")) for r in done]
    return median(p / nd for p, nd in sizes if p is not None and nd)


def _words(done: list[TrialResult], noun: str) -> tuple[str, ...]:
    """Read the shares for somebody who sees them for the first time."""
    shares = finite(r.facts.get("recovered_0.8") for r in done)
    own = median(shares) or 0.0
    null = median(r.facts.get("held_out_0.8") for r in done) or 0.0
    if own == 0:
        where = " in at least half of the seeds" if any(shares) else ""
        return (f"No training {noun} was recovered{where} (correlation above 0.8).",)
    if null >= own / 3:
        return (
            f"{100 * own:.3g} % of the training {noun}s correlate above 0.8 with "
            f"a candidate, but so do {100 * null:.3g} % of {noun}s never trained on: "
            f"this is no evidence of memorisation.",
        )
    return (
        f"{100 * own:.3g} % of the training {noun}s were recovered (correlation "
        f"above 0.8); of {noun}s never trained on {100 * null:.3g} % get there.",
    )


def _fitted(residual: float | None, oracle: float | None) -> tuple[str, ...]:
    """Compare how well the answer and the truth explain what was shared."""
    if residual is None or oracle is None:
        return ()
    if residual < _OVERFIT * oracle:
        return (
            "The answer explains the weights better than the training data do: it is "
            "over-fitted, and its residual is no evidence of recovery.",
        )
    if residual > 2 * oracle:
        return (
            "The training data explain the weights better than the answer does: the "
            "search ended too early, and more may be recoverable.",
        )
    return ()


def _explained(done: list[TrialResult], oracle: float | None) -> tuple[str, ...]:
    """Say where the equation of the attack does not hold at the truth."""
    # More than all of it is left only by objectives that are no share.
    if oracle is None or not _UNEXPLAINED <= oracle <= 1 + 1e-6:
        return ()
    said = (
        f"Even the training data leave {100 * oracle:.3g} % of what was shared "
        f"unexplained"
    )
    kept = median(r.facts.get("cosine_to_exact") for r in done)
    if kept is not None and 1 - kept**2 > oracle / 2:
        return (f"{said}: most of that is what the defense has changed.",)
    return (
        f"{said}: the features (the equation) of this attack do not describe this "
        f"training, so that no attack of this kind can be right.",
    )


def _held(ratio: float | None) -> tuple[str, ...]:
    """Say whether the network is large enough to hold its data."""
    if ratio is None:
        return ()
    said = f"There are {number(ratio)} parameters per unknown number, p/(nd):"
    if ratio < _FEW:
        return (f"{said} labels can be fitted with so few, but data hardly be read.",)
    return (f"{said} enough to hold the training data.",)


def _map(result: TrialResult) -> tuple[Remembered, ...]:
    """Show private examples beside the best candidates, the best recovered first.

    The matched guesses are not shown: they have the least total squared error, with
    each candidate used once, and need not be what the correlation belongs to.
    """
    found = result.arrays.get("best_correlation")
    guess = result.arrays.get("best_candidate")
    if found is None or guess is None:  # results of versions that did not keep it
        return ()
    truth = result.arrays["truth"]
    order = np.argsort(-found, kind="stable")[:_MOST]
    level, draw = result.facts.get("null_level", math.inf), drawing(result)
    return tuple(
        Remembered(
            replace(draw(truth[i], truth[i]), alt=f"training example {i + 1}"),
            replace(draw(guess[i], truth[i]), alt=f"best candidate of example {i + 1}"),
            number(float(found[i]), 2),
            bool(found[i] > level),
        )
        for i in order
    )
