"""What an attack gains over guessing, example by example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Literal

from exhume.formula import formula
from exhume.runs.records import TrialResult

__all__ = ["Gain", "Level", "gain", "recovery_ratio", "seed_test"]

#: ``leak``: examples were recovered, or most of their error is gone for certain;
#: ``slight``: closer than guessing for certain; ``unsure``: closer on these examples,
#: which chance may explain; ``chance``: not closer; ``open``: no guess to compare with
Level = Literal["leak", "slight", "unsure", "chance", "open"]

# Conventions of the words; the numbers beside them do not depend on them.
#: a recovered example has at most this share of the error of the best guess
_RECOVERED = 0.1
#: probability that luck alone recovers an example, anywhere in an audit
_LUCK = 0.01
#: an attack that keeps more than this share of the guess's error learned little
_SLIGHT = 0.5
#: one-sided error of all tests of one audit together
_ALPHA = 0.05
#: ratios beyond this say no more: one exact example must not decide a mean of logs
_CLIP = 1e3


@formula(
    r"\tau = \min\bigl(0.1,\; (0.01 / n)^{2/d}\bigr)",
    reference="a ball of τ times the squared radius has τ^{d/2} of the volume",
)
def recovery_ratio(dimension: int, chances: int = 1) -> float:
    """Return the share of a guess's error below which an example counts as recovered.

    A tenth, and less where examples have so few numbers that luck comes as near.

    Args:
        dimension: d, numbers of one example.
        chances: n, examples that luck may find.
    """
    return min(_RECOVERED, (_LUCK / max(chances, 1)) ** (2 / max(dimension, 1)))


@formula(
    r"t = \bar\rho \sqrt n / s_\rho,\quad"
    r" \rho_s = \tfrac1B \textstyle\sum_i \log(e_{si} / c_{si})",
    reference="Student, Biometrika 1908, one-sided, of seeds as units",
)
def seed_test(
    errors: Sequence[float], others: Sequence[float], seeds: Sequence[int]
) -> float:
    """Return the probability that chance makes errors so much smaller than others.

    Examples of one seed share weights and release, so seeds are what is independent.

    Args:
        errors: e, one per example.
        others: c, of the same examples.
        seeds: of the same examples.

    Returns:
        the one-sided p-value; 1 with fewer than two seeds.
    """
    means = _means([*map(_log_ratio, errors, others)], seeds)
    if len(means) < 2:
        return 1.0
    middle = fmean(means)
    spread = math.sqrt(sum((m - middle) ** 2 for m in means) / (len(means) - 1))
    if spread == 0:
        return 0.0 if middle < 0 else 1.0
    from scipy.stats import t

    return float(t.cdf(middle * math.sqrt(len(means)) / spread, len(means) - 1))


def _means(values: Sequence[float], seeds: Sequence[int]) -> list[float]:
    """Return the mean of each seed."""
    of_seed: dict[int, list[float]] = {}
    for value, seed in zip(values, seeds, strict=True):
        of_seed.setdefault(seed, []).append(value)
    return [*map(fmean, of_seed.values())]


def _log_ratio(error: float, other: float) -> float:
    """Compare two errors; without an estimate the attacker has the guess."""
    if error == other or not math.isfinite(error):
        return 0.0
    ratio = math.inf if other == 0 else error / other
    return math.log(min(max(ratio, 1 / _CLIP), _CLIP))


@dataclass(frozen=True)
class Gain:
    """Errors of an attack beside those of the best guess, and of its placebo.

    Attributes:
        errors: e of every example of every seed; ∞ without an estimate.
        guesses: c, the least error that a guess has on the same example.
        seeds: of the same examples.
        dimension: d, numbers of one example.
        placebos: errors of the same attack on the release of other examples, scored
            against these; empty if it was not run.
        tests: attacks and defenses that are compared at once.
    """

    errors: tuple[float, ...]
    guesses: tuple[float, ...]
    seeds: tuple[int, ...]
    dimension: int
    placebos: tuple[float, ...] = ()
    tests: int = 1

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.errors)

    @cached_property
    def ratios(self) -> list[float]:
        """Share e / c of the guess's error that the attack keeps of every example.

        A guess that is exact leaves nothing to gain: ∞.
        """
        pairs = zip(self.errors, self.guesses, strict=True)
        return [e / c if c > 0 else math.inf for e, c in pairs]

    @cached_property
    def recovered(self) -> int:
        """Examples with at most :func:`recovery_ratio` of the guess's error."""
        return sum(self._hits)

    @property
    def _hits(self) -> list[bool]:
        most = recovery_ratio(self.dimension, self.examples * self.tests)
        return [ratio <= most for ratio in self.ratios]

    @property
    def share(self) -> float:
        """Share of the examples that are recovered."""
        return self.recovered / self.examples

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of that share (Clopper and Pearson, Biometrika 1934)."""
        from scipy.stats import binomtest

        found = binomtest(self.recovered, self.examples).proportion_ci(0.95)
        return float(found.low), float(found.high)

    @property
    def worst_seed(self) -> float:
        """Share of recovered examples of the seed with the most."""
        return max(_means(self._hits, self.seeds))

    @cached_property
    def kept(self) -> float:
        """Mean share of the guess's error that the better of the two leaves."""
        return fmean(min(ratio, 1.0) for ratio in self.ratios)

    @property
    def lowest(self) -> float:
        """Error below which a tenth of the examples lie (one at least)."""
        return sorted(self.errors)[max(math.ceil(self.examples / 10) - 1, 0)]

    @property
    def typical(self) -> float:
        """Median share of the guess's error that the attack keeps."""
        return median(self.ratios)

    @property
    def order(self) -> tuple[float, float]:
        """Sorts the attack that gains most first."""
        return -self.share, self.kept

    @cached_property
    def certain(self) -> bool:
        """Whether chance does not explain it, nor what the attack knows anyway."""
        return self._nearer(self.guesses) and not self.is_guess

    @cached_property
    def is_guess(self) -> bool:
        """Whether it is nearer than guesses, but not for certain than its placebo."""
        return (
            bool(self.placebos)
            and self._nearer(self.guesses)
            and not self._nearer(self.placebos)
        )

    def _nearer(self, others: Sequence[float]) -> bool:
        return seed_test(self.errors, others, self.seeds) <= _ALPHA / self.tests

    @property
    def level(self) -> Level:
        """The gain in one word."""
        if self.recovered:
            return "leak"
        if self.certain:
            return "leak" if self.typical <= _SLIGHT else "slight"
        logs = map(_log_ratio, self.errors, self.guesses)
        return "unsure" if fmean(logs) < 0 else "chance"

    @property
    def needs_placebo(self) -> bool:
        """Whether the word rests on guesses alone, which an attack may know better."""
        return not self.recovered and self.certain and not self.placebos


def gain(
    attack: Sequence[TrialResult],
    guesses: Sequence[Sequence[TrialResult]],
    *,
    placebos: Sequence[TrialResult] = (),
    tests: int = 1,
) -> Gain | None:
    """Compare an attack with the best guess for each example.

    Args:
        attack: its trials under one defense, one per seed.
        guesses: trials of every chance level; seeds that the attack lacks are ignored.
        placebos: trials of the attack on other releases.
        tests: attacks and defenses that are compared at once.

    Returns:
        None where no trial of the attack ended, or none has a guess beside it.
    """
    known = [{r.spec.seed: _errors(r) for r in level} for level in guesses]
    decoys = {r.spec.seed: _errors(r) for r in placebos if r.status == "done"}
    rows: list[tuple[float, float, int, float]] = []
    dimension = 0
    for result in attack:
        seed, errors = result.spec.seed, _errors(result)
        beside = [level[seed] for level in known if seed in level]
        if not errors or not beside:
            continue
        shape = (result.event or {}).get("shape", ())
        dimension = int(result.facts.get("dimension", 0)) or math.prod(shape)
        best = [min(values) for values in zip(*beside, strict=True)]
        decoy = decoys.get(seed, [math.nan] * len(errors))
        rows += zip(errors, best, [seed] * len(errors), decoy, strict=True)
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return None
    errors, best, seeds, decoy = zip(*rows, strict=True)
    complete = not any(map(math.isnan, decoy))
    return Gain(
        errors, best, seeds, dimension or 1, decoy if complete else (), max(tests, 1)
    )


def _errors(result: TrialResult) -> list[float]:
    """Return the headline error of every example; ∞ where there is no estimate."""
    values = result.scores.get(result.headline, []) if result.status == "done" else []
    return [math.inf if v is None or math.isnan(v) else v for v in values]
