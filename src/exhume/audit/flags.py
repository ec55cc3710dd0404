"""What to distrust in a result: sentences for a reader who did not write the attack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from exhume.audit.report.results import grouped
from exhume.audit.settings import READS_SCALE
from exhume.problem.presets import PRESETS
from exhume.runs.records import (
    Flag,
    TrialResult,
    TrialSpec,
    binds_every_attack,
    is_error,
)

__all__ = ["find_flags"]

# Conventions: where a quantity becomes worth a sentence; they change no number.
#: the objective at the truth is lower by this fraction of itself, or of its fall
_LOWER = 0.01
#: relative difference of two objectives that may be rounding
_ROUNDING = 1e-5
#: error over the chance level above which a reconstruction is wrong, below which right
_WRONG, _RIGHT = 0.1, 0.01
#: chance level where no baseline was run: an error of a tenth of a unit range
_NO_BASELINE = 0.01
#: an objective that fell by this factor is zero for all we know, or to rounding
_ZERO, _EXACTLY_ZERO = 1e-6, 1e-12
#: norm of a gradient that no longer carries much: the label's probability is ≥ 0.999
_VANISHED = 1e-3
#: what training has left where weights are far from the limit in which they tell data
_UNTRAINED = {"training_loss": 1e-3, "stationarity": 0.1}
#: one-sided tail probability of three standard errors
_TAIL = 0.00135
#: defended error over undefended error, closed-form error over iterated error
_CLEARLY_BELOW = 0.5

_Found = dict[str, tuple[Flag, ...]]


def find_flags(results: Iterable[TrialResult]) -> dict[str, tuple[Flag, ...]]:
    """Find what a reader should know before believing a number.

    Args:
        results: of one audit, in any order.

    Returns:
        id of a spec → its flags; ids without any are absent.
    """
    done = [r for r in results if r.status == "done" and not r.spec.placebo]
    attacks = [r for r in done if {*r.scores.get(r.headline, ())} - {None}]
    found: _Found = {}
    _each(attacks, found)
    chance = _chance_levels(attacks)
    _settings(attacks, chance, found)
    _undefended(attacks, chance, found)
    _bounds(attacks, [r for r in done if is_error(r) and binds_every_attack(r)], found)
    return found


def _raise(found: _Found, results: Iterable[TrialResult], flag: Flag) -> None:
    for result in results:
        flags = found.get(result.spec.id, ())
        if flag not in flags:
            found[result.spec.id] = (*flags, flag)


def _error(result: TrialResult) -> float:
    """Return the mean error of an attack over the examples that have one."""
    return fmean([v for v in result.scores[result.headline] if v is not None])


def _each(attacks: Sequence[TrialResult], found: _Found) -> None:
    """Raise what a trial shows without any other, but for its seeds."""
    for group in grouped(attacks, "seed").values():
        seeds = {r.spec.seed for r in group}
        for result in group:
            if result.facts.get("gradient_norm", math.inf) < _VANISHED:
                _raise(found, [result], _GRADIENT_NEAR_ZERO)
            if result.baseline:
                continue
            if any(result.facts.get(n, 0.0) > most for n, most in _UNTRAINED.items()):
                _raise(found, [result], _NOT_TRAINED)
            if result.spec.defenses and not result.adaptive:
                _raise(found, [result], _non_adaptive(result.spec))
            if len(seeds) == 1:
                _raise(found, [result], _SINGLE_SEED)
            if result.outcome is not None and result.outcome[0] == "TIME_LIMIT":
                _raise(found, [result], _TIME_LIMITED)


def _chance_levels(attacks: Sequence[TrialResult]) -> dict[str, float]:
    """Return the best chance level of every setting that has one."""
    levels: dict[str, float] = {}
    for result in attacks:
        if result.baseline:
            key = result.spec.setting
            levels[key] = min(_error(result), levels.get(key, math.inf))
    return levels


def _settings(
    attacks: Sequence[TrialResult], chance: dict[str, float], found: _Found
) -> None:
    """Compare attacks that faced the same observation."""
    groups: dict[str, list[TrialResult]] = {}
    for result in attacks:
        if not result.baseline:
            groups.setdefault(result.spec.setting, []).append(result)
    for setting, contenders in groups.items():
        level = chance.get(setting, _NO_BASELINE)
        for result in contenders:
            if _error(result) >= chance.get(setting, math.inf):
                _raise(found, [result], _no_better(result.spec))
            _objectives(result, level, found)
        closed = [r for r in contenders if (r.outcome or [""])[0] == "CLOSED_FORM"]
        iterated = [r for r in contenders if r not in closed]
        if _clearly_better(closed, iterated):
            _raise(found, iterated, _MASKING)
        # This attack only ever answers where the variance depends on the data.
        own = [
            r for r in contenders if (r.spec.attack or {}).get("name") == READS_SCALE
        ]
        others = [r for r in contenders if r not in own]
        if _clearly_better(own, others) and min(map(_error, own)) < level:
            _raise(found, contenders, _PRIVATE_SCALE_LEAK)


def _clearly_better(some: Sequence[TrialResult], others: Sequence[TrialResult]) -> bool:
    """Say whether some attacks have less than half of the error of all others."""
    if not some or not others:
        return False
    return min(map(_error, some)) < _CLEARLY_BELOW * min(map(_error, others))


def _objectives(result: TrialResult, chance: float, found: _Found) -> None:
    """Compare the attack's objective at its answer with the one at the truth."""
    answer, truth = result.objective, result.objective_at_truth
    if answer is None or truth is None:
        return
    start = max((row[3] for row in result.trace if row[1] == 0), default=math.nan)
    if _truth_is_lower(answer, truth, start) and _error(result) > _RIGHT * chance:
        _raise(found, [result], _UNDER_OPTIMISED)
        return
    zero = math.isfinite(start) and abs(answer) <= _ZERO * start
    if zero and _error(result) > _WRONG * chance:
        _raise(found, [result], _NOT_IDENTIFIABLE)


def _truth_is_lower(answer: float, truth: float, start: float) -> bool:
    """Say whether the optimiser left more than a hundredth of what it could have won.

    Under noise most of a likelihood is the noise of the many coordinates, the same for
    every candidate, so the difference is held against the fall from the start as well.
    """
    if not math.isfinite(answer):
        return math.isfinite(truth)
    scale = max(abs(answer), abs(truth))
    least = _LOWER * scale
    if math.isfinite(start):
        if abs(answer) <= _EXACTLY_ZERO * abs(start):
            return False
        least = min(least, _LOWER * max(start - truth, 0.0))
    return answer - truth > max(least, _ROUNDING * scale)


def _undefended(
    attacks: Sequence[TrialResult], chance: dict[str, float], found: _Found
) -> None:
    """Compare each attack under a defense with itself without one, over the seeds."""
    contenders = [r for r in attacks if not r.baseline]
    for group in grouped(contenders, "seed", "defenses").values():
        plain = {r.spec.seed: r for r in group if not r.spec.defenses}
        defended = [r for r in group if r.spec.defenses and r.spec.seed in plain]
        for cell in grouped(defended, "seed").values():
            same = [plain[r.spec.seed] for r in cell]
            without = fmean(map(_error, same))
            level = fmean(chance.get(r.spec.setting, _NO_BASELINE) for r in same)
            # Where both are nearly exact, their ratio is a matter of rounding.
            visible = without > _RIGHT * level
            if visible and fmean(map(_error, cell)) < _CLEARLY_BELOW * without:
                _raise(found, cell, _LEAKS_MORE)


def _bounds(
    attacks: Sequence[TrialResult], bounds: Sequence[TrialResult], found: _Found
) -> None:
    """Compare each attack's mean error over the seeds with each bound's mean.

    A bound is on what the release alone tells: an attacker who is given statistics of
    the batch beside it may do better. Bounds that bind fewer than all attacks, or
    bound no squared error, are not among ``bounds``.
    """
    attacks = [r for r in attacks if not _told_statistics(r.spec.threat)]
    lower = grouped(bounds, "seed", "attack", "bound", "threat")
    for key, group in grouped(attacks, "seed", "attack", "bound", "threat").items():
        for values in grouped(lower.get(key, []), "seed").values():
            bound = {r.spec.seed: r for r in values}
            for cell in grouped(group, "seed").values():
                pairs = [
                    (r, bound[r.spec.seed])
                    for r in cell
                    if r.spec.seed in bound and "ordered_mse" in r.facts
                ]
                _compare(pairs, found)


def _told_statistics(threat: str) -> bool:
    preset = PRESETS.get(threat)
    return preset is not None and "BATCH_NORM_STATISTICS" in preset.facts


def _compare(pairs: Sequence[tuple[TrialResult, TrialResult]], found: _Found) -> None:
    """Raise an alarm if the mean of error − bound is significantly negative.

    The bound is on the mean over the prior: one error may well be below it. Student's t
    keeps the false-alarm rate of three standard errors when there are few seeds.
    """
    if len(pairs) < 2:
        return
    from scipy.stats import t

    errors = [r.facts.get("ordered_mse", math.nan) for r, _ in pairs]
    floors = [float(_bound(b)["mse"]) for _, b in pairs]
    monte_carlo = [float(_bound(b)["mse_standard_error"]) for _, b in pairs]
    gaps = [e - f for e, f in zip(errors, floors, strict=True)]
    spread = stdev(gaps) / math.sqrt(len(gaps))
    both = math.hypot(spread, math.hypot(*monte_carlo) / len(gaps))
    if fmean(gaps) >= -float(t.ppf(1 - _TAIL, len(gaps) - 1)) * both:
        return
    what = (
        f"over {len(gaps)} seeds the mean squared error is {fmean(errors):.3g} and the "
        f"lower bound '{_bound(pairs[0][1])['name']}' is {fmean(floors):.3g}"
    )
    fits = [r.facts["prior_fit"] for r, _ in pairs if "prior_fit" in r.facts]
    fit = fmean(fits) if fits else None
    _raise(found, [r for r, _ in pairs], _below_bound(what, fit))


def _bound(result: TrialResult) -> dict[str, Any]:
    assert result.bound is not None
    return result.bound


# --- sentences ------------------------------------------------------------------------

#: a prior fits if held-out examples are as far from its mean as its draws, within this
_FIT = 0.1


def _below_bound(what: str, fit: float | None) -> Flag:
    """Say that a mean error is below a bound.

    Args:
        what: the two numbers, in words.
        fit: check of the prior on held-out examples (1 if it fits), or None.
    """
    if fit is not None and abs(fit - 1) <= _FIT:
        return Flag(
            "below-bound",
            "alarm",
            f"The attack does better than anything can: {what}. Either an assumption "
            f"of the bound fails (the prior is wrong although its check is passed, or "
            f"the attacker also used the range of the data), or the bound or the "
            f"mechanism is implemented wrongly. Do not trust either number.",
        )
    checked = "was not checked on held-out examples" if fit is None else "does not fit"
    value = "" if fit is None else f" (its check gives {fit:.3g} instead of 1)"
    return Flag(
        "below-bound",
        "note",
        f"The error is below the bound: {what}. The bound is an average over the "
        f"prior, and the prior {checked}{value}, so it says nothing about these data.",
    )


def _non_adaptive(spec: TrialSpec) -> Flag:
    """Say who ignores the defense, and what follows."""
    preset = PRESETS.get(spec.threat)
    if preset is not None and "DEFENSE" not in preset.facts:
        why = "The threat model hides the defense from the attacker"
    else:
        why = "The attacker knows the defense, but this attack does not use it"
    return Flag(
        "non-adaptive",
        "warning",
        f"{why}. An attack that models the defense may recover more, so a large error "
        f"here does not show that the defense protects; look at an adaptive attack.",
    )


def _no_better(spec: TrialSpec) -> Flag:
    """Say that an attack is no better than what is public."""
    if not spec.defenses:
        return Flag(
            "chance",
            "warning",
            "Nothing defends, and still the attack is no better than a chance level. "
            "It fails on this model, so what it shows of a defense means nothing.",
        )
    return Flag(
        "chance",
        "note",
        "The attack is no better than a chance level (the prior mean, or the public "
        "example with the nearest update): either the defense holds, or this attack is "
        "too weak.",
    )


_UNDER_OPTIMISED = Flag(
    "under-optimised",
    "warning",
    "The attack's own objective is lower at the private data than at its answer, so "
    "the optimiser stopped too early or got stuck. The error says nothing about "
    "privacy; give it more iterations or restarts.",
)
_NOT_IDENTIFIABLE = Flag(
    "not-identifiable",
    "note",
    "The attack explains the observation perfectly and is still wrong: other data give "
    "the same update. More optimisation cannot help; a better prior may.",
)
_NOT_TRAINED = Flag(
    "not-trained",
    "note",
    "Training ended far from a low loss, or with weight decay from a stationary point. "
    "The equation between weights and data that the attack solves need not hold there, "
    "so a failure of the attack says nothing about longer training; raise iterations.",
)

_GRADIENT_NEAR_ZERO = Flag(
    "gradient-near-zero",
    "warning",
    "The exact gradient is almost zero, as it is for examples that a trained model "
    "already fits. A failed attack then shows a vanished signal, not a good defense.",
)
_MASKING = Flag(
    "masking",
    "warning",
    "A closed-form attack on the same observation has less than half of this error. "
    "The optimiser's failure hides a leak: judge the defense by the closed form.",
)
_PRIVATE_SCALE_LEAK = Flag(
    "private-scale-leak",
    "warning",
    "The attack that reads the scale of the noise has less than half of the error of "
    "every other: the scale depends on the private data and gives them away, at any "
    "noise level. Take the scales from public data.",
)
_LEAKS_MORE = Flag(
    "leaks-more",
    "warning",
    "This attack does better against the defense than without it, which a defense "
    "cannot cause: the undefended run is too weak to compare with.",
)
_SINGLE_SEED = Flag(
    "single-seed",
    "note",
    "One seed only: one choice of examples, weights, noise and start. Run several "
    "before comparing numbers.",
)
_TIME_LIMITED = Flag(
    "time-limited",
    "note",
    "A time budget ended the attack, so the result depends on the speed of the machine "
    "and is not reproducible bit for bit.",
)
