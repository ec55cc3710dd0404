"""What leaked, in words: the strongest attack under each defense, against chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

from exhume.audit.report.described import described
from exhume.audit.report.grouping import Defended, Scenario, values
from exhume.report.words import also, count, median, score, several
from exhume.runs.records import BOUNDED_METRIC, Flag, TrialResult

__all__ = ["Finding", "Flags", "Reached", "findings", "verdict"]

Flags = Mapping[str, tuple[Flag, ...]]
Level = Literal["leak", "slight", "chance", "open"]

#: An attack that keeps more than half of the baseline's error learned little;
#: the boundary is a convention and only chooses the words.
_SLIGHT = 0.5

#: flags under which a failed attack says nothing about the defense
_WEAK = ("under-optimised", "non-adaptive")


@dataclass(frozen=True)
class Reached:
    """A median error in words.

    Attributes:
        quantity: of the metric; "" where the unit says it.
        value: in print.
        unit: of the metric, or "".
    """

    quantity: str
    value: str
    unit: str

    def __str__(self) -> str:
        return f"{self.introduced()}{self.measured}"

    @property
    def measured(self) -> str:
        """Value and unit."""
        return f"{self.value} {self.unit}".rstrip()

    def introduced(self) -> str:
        """Return what stands before the value: ``a squared error of``, or nothing."""
        if not self.quantity:
            return ""
        article = "an" if self.quantity[0] in "aeiou" else "a"
        return f"{article} {self.quantity} of "


@dataclass(frozen=True)
class Finding:
    """The strongest attack under one defense.

    Attributes:
        defense: the defense.
        attack: label of the attack with the smallest median error, or "" if none ended.
        error: its median error over examples, of the headline of the data.
        reached: the same in words, in dB for a squared error of data with a range.
        baseline: the chance level with the least error on the same seeds, or "".
        guessed: the baseline's median error in words, or None.
        level: how the error compares with that guess.
    """

    defense: Defended
    attack: str = ""
    error: float | None = None
    reached: Reached | None = None
    baseline: str = ""
    guessed: Reached | None = None
    level: Level = "open"


def findings(scenario: Scenario) -> list[Finding]:
    """Find the strongest attack under every defense that some attack was tried on."""
    return [
        _finding(scenario, defense)
        for defense in scenario.defenses
        if any((defense.label, a) in scenario.trials for a in scenario.contenders)
    ]


def _finding(scenario: Scenario, defense: Defended) -> Finding:
    metric = scenario.headline
    attacks = [(name, scenario.done(defense, name)) for name in scenario.contenders]
    best = _least(attacks, metric)
    if best is None:
        return Finding(defense)
    error, attack, results = best
    seeds, names = [r.spec.seed for r in results], sorted(scenario.baselines)
    guess = _least([(b, scenario.chance(b, defense, seeds)) for b in names], metric)
    reached = _in_words(results, metric)
    if guess is None:
        return Finding(defense, attack, error, reached, level="leak")
    chance, baseline, guesses = guess
    level: Level = "leak"
    if error > _SLIGHT * chance:
        level = "chance" if error >= chance else "slight"
    guessed = _in_words(guesses, metric)
    return Finding(defense, attack, error, reached, baseline, guessed, level)


def _least(
    candidates: Sequence[tuple[str, list[TrialResult]]], metric: str
) -> tuple[float, str, list[TrialResult]] | None:
    ranked = [
        (error, name, results)
        for name, results in candidates
        if (error := median(values(results, metric))) is not None
    ]
    return min(ranked, key=itemgetter(0), default=None)


def _in_words(results: Sequence[TrialResult], metric: str) -> Reached:
    psnr = median(values(results, "psnr"))
    if psnr is not None and metric == BOUNDED_METRIC:
        return Reached("", score("psnr", psnr), "dB")
    words = described(metric)
    error = score(metric, median(values(results, metric)))
    return Reached(words.quantity, error, words.unit)


def verdict(scenario: Scenario, found: Sequence[Finding], flags: Flags) -> str:
    """Say in one paragraph what leaked, and how far the numbers can be trusted."""
    if not found:
        return "No attack was run, so nothing can be said about what leaks."
    sentences = [_undefended(scenario, f) for f in found if f.defense.is_none]
    sentences += _defended([f for f in found if not f.defense.is_none])
    return " ".join(sentences + _caveats(scenario, found, flags))


def _undefended(scenario: Scenario, finding: Finding) -> str:
    name = scenario.spec.data["name"]
    examples = f"the {name}" if name.endswith("s") else f"the {name} examples"
    guess = f" (guessing, {finding.baseline}: {finding.guessed})"
    match finding.level:
        case "open":
            return "Without a defense, no attack finished."
        case "chance":
            return f"Even without a defense, no attack is better than guessing{guess}."
        case "slight":
            how = f"gets little more of {examples} than a guess: {finding.reached}"
        case "leak":
            how = f"recovers {examples} {_median(finding.reached)}"
    return (
        f"Without a defense, {finding.attack} {how}{guess if finding.baseline else ''}."
    )


def _median(reached: Reached | None) -> str:
    assert reached is not None  # an attack has finished
    if not reached.quantity:
        return f"at a median of {reached.measured}"
    return f"with a median {reached.quantity} of {reached.measured}"


def _defended(found: Sequence[Finding]) -> list[str]:
    levels: dict[Level, list[Finding]] = {}
    for finding in found:
        levels.setdefault(finding.level, []).append(finding)
    sentences = []
    if "leak" in levels:
        parts = []
        for attack in dict.fromkeys([f.attack for f in levels["leak"]]):
            groups = _families(levels["leak"], attack)
            reached = [f"{_span(group)} with {_names(group)}" for group in groups]
            parts.append(f"{attack} still reaches {several(reached)}")
        sentences.append(f"With a defense, {'; '.join(parts)}.")
    if "slight" in levels:
        groups = _families(levels["slight"])
        parts = [f"{_names(g)} ({g[-1].attack}: {_span(g)})" for g in groups]
        sentences.append(f"Little more than a guess is left with {also(parts)}.")
    if "chance" in levels:
        names = also([_names(g) for g in _families(levels["chance"])])
        guesses = several(sorted({f.baseline for f in levels["chance"]}), "or")
        sentences.append(
            f"With {names}, no attack is better than guessing ({guesses})."
        )
    if "open" in levels:
        names = also([_names(g) for g in _families(levels["open"])])
        sentences.append(f"No attack finished with {names}.")
    return sentences


def _families(found: Sequence[Finding], attack: str = "") -> list[list[Finding]]:
    """Put findings of one family together, weak to strong."""
    families: dict[str, list[Finding]] = {}
    for finding in found:
        if not attack or finding.attack == attack:
            families.setdefault(finding.defense.family, []).append(finding)
    return list(families.values())


def _span(group: Sequence[Finding]) -> str:
    first, last = group[0].reached, group[-1].reached
    if first == last or first is None or last is None:
        return str(first)
    return f"{first.introduced()}{first.value} to {last.measured}"


def _names(group: Sequence[Finding]) -> str:
    """Name one defense, or a family with its range of strengths."""
    weak, strong = group[0].defense, group[-1].defense
    if len(group) == 1 or weak.strength is None or strong.strength is None:
        return also([f.defense.label for f in group])
    option, least = weak.strength
    most = strong.strength[1]
    return f"{weak.family} ({option.replace('_', ' ')} {least:g} to {most:g})"


def _caveats(scenario: Scenario, found: Sequence[Finding], flags: Flags) -> list[str]:
    sentences = []
    held = [f.defense for f in found if f.level in {"chance", "slight"}]
    runs = [r for d in held for a in scenario.contenders for r in scenario.done(d, a)]
    weak = [r for r in runs if any(f.kind in _WEAK for f in flags.get(r.spec.id, ()))]
    if weak:
        sentences.append(
            f"Where little was recovered, {len(weak)} of "
            f"{count(len(runs), 'attack run')} stopped early or ignored the defense: "
            f"that is no evidence of protection."
        )
    alarms = [
        r
        for r in scenario.results
        if any(f.severity == "alarm" for f in flags.get(r.spec.id, ()))
    ]
    if alarms:
        raised = "raises an alarm" if len(alarms) == 1 else "raise an alarm"
        sentences.append(
            f"{count(len(alarms), 'result').capitalize()} {raised}: read the flags "
            f"before quoting a number."
        )
    if not [f for f in found if f.baseline]:
        sentences.append("No baseline finished, so the chance level is not known.")
    return sentences
