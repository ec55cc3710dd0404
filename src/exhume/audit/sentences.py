"""The sentences of the flags, for a reader who wrote neither attack nor defense."""

from __future__ import annotations

from exhume.problem.presets import PRESETS
from exhume.runs.records import Flag, TrialSpec

__all__ = [
    "GRADIENT_NEAR_ZERO",
    "LEAKS_MORE",
    "MASKING",
    "NOT_IDENTIFIABLE",
    "NOT_TRAINED",
    "PRIVATE_SCALE_LEAK",
    "SINGLE_SEED",
    "TIME_LIMITED",
    "UNDER_OPTIMISED",
    "below_bound",
    "chance",
    "non_adaptive",
]

#: a prior fits if held-out examples are as far from its mean as its draws, within this
FIT = 0.1


def below_bound(what: str, fit: float | None) -> Flag:
    """Say that a mean error is below a bound.

    Args:
        what: the two numbers, in words.
        fit: check of the prior on held-out examples (1 if it fits), or None.
    """
    if fit is not None and abs(fit - 1) <= FIT:
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


def non_adaptive(spec: TrialSpec) -> Flag:
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


def chance(spec: TrialSpec) -> Flag:
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


UNDER_OPTIMISED = Flag(
    "under-optimised",
    "warning",
    "The attack's own objective is lower at the private data than at its answer, so "
    "the optimiser stopped too early or got stuck. The error says nothing about "
    "privacy; give it more iterations or restarts.",
)
NOT_IDENTIFIABLE = Flag(
    "not-identifiable",
    "note",
    "The attack explains the observation perfectly and is still wrong: other data give "
    "the same update. More optimisation cannot help; a better prior may.",
)
NOT_TRAINED = Flag(
    "not-trained",
    "note",
    "Training ended far from a low loss, or with weight decay from a stationary point. "
    "The equation between weights and data that the attack solves need not hold there, "
    "so a failure of the attack says nothing about longer training; raise iterations.",
)

GRADIENT_NEAR_ZERO = Flag(
    "gradient-near-zero",
    "warning",
    "The exact gradient is almost zero, as it is for examples that a trained model "
    "already fits. A failed attack then shows a vanished signal, not a good defense.",
)
MASKING = Flag(
    "masking",
    "warning",
    "A closed-form attack on the same observation has less than half of this error. "
    "The optimiser's failure hides a leak: judge the defense by the closed form.",
)
PRIVATE_SCALE_LEAK = Flag(
    "private-scale-leak",
    "warning",
    "The attack that reads the scale of the noise has less than half of the error of "
    "every other: the scale depends on the private data and gives them away, at any "
    "noise level. Take the scales from public data.",
)
LEAKS_MORE = Flag(
    "leaks-more",
    "warning",
    "This attack does better against the defense than without it, which a defense "
    "cannot cause: the undefended run is too weak to compare with.",
)
SINGLE_SEED = Flag(
    "single-seed",
    "note",
    "One seed only: one choice of examples, weights, noise and start. Run several "
    "before comparing numbers.",
)
TIME_LIMITED = Flag(
    "time-limited",
    "note",
    "A time budget ended the attack, so the result depends on the speed of the machine "
    "and is not reproducible bit for bit.",
)
