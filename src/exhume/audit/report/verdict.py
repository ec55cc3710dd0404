"""What leaked, in words: the strongest attack under each defense, against chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exhume.audit.report.results import Defended, Scenario, described, values
from exhume.report.words import also, count, median, score, several
from exhume.runs.records import BOUNDED_METRIC, Flag, TrialResult
from exhume.trials.gain import Gain, Level, gain

__all__ = ["Finding", "Flags", "Reached", "findings", "gains", "verdict"]

Flags = Mapping[str, tuple[Flag, ...]]

_WORDS: dict[Level, str] = {
    "leak": "leak",
    "slight": "nearer than a guess",
    "unsure": "perhaps nearer than a guess",
    "chance": "no better than a guess",
    "open": "no guess to compare with",
}

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
        attack: label of the attack that gains most over guessing (the smallest median
            error, where nothing was guessed), or "" if none ended.
        error: its median error over examples, of the headline of the data.
        reached: the same in words, in dB for a squared error of data with a range.
        baseline: the chance level with the least error on the same seeds, or "".
        guessed: the baseline's median error in words, or None.
        gain: of the attack over the guesses; None where nothing was guessed.
        recognises: the attack answers with public examples.
        headline: metric of the errors.
    """

    defense: Defended
    attack: str = ""
    error: float | None = None
    reached: Reached | None = None
    baseline: str = ""
    guessed: Reached | None = None
    gain: Gain | None = None
    recognises: bool = False
    headline: str = BOUNDED_METRIC

    @property
    def level(self) -> Level:
        """The gain in one word."""
        return "open" if self.gain is None else self.gain.level

    @property
    def word(self) -> str:
        """The verdict in a cell of a table."""
        if not self.attack:
            return "no attack finished"
        return _WORDS[self.level]

    @property
    def share(self) -> str:
        """Recovered examples in words: ``4 of 6``."""
        if self.gain is None:
            return "–"
        return f"{self.gain.recovered} of {self.gain.examples}"

    @property
    def lowest(self) -> str:
        """Error of the headline below which a tenth of the examples lie, in print."""
        return score(self.headline, None if self.gain is None else self.gain.lowest)

    @property
    def interval(self) -> str:
        """95 % interval of the share of recovered examples: ``22 to 96 %``."""
        if self.gain is None:
            return "–"
        low, high = self.gain.interval
        return f"{100 * low:.0f} to {100 * high:.0f} %"


def findings(scenario: Scenario) -> list[Finding]:
    """Find the strongest attack under every defense that some attack was tried on."""
    found = gains(scenario)
    return [
        _finding(scenario, defense, found)
        for defense in scenario.defenses
        if any((defense.label, a) in scenario.trials for a in scenario.contenders)
    ]


def gains(scenario: Scenario) -> dict[tuple[str, str], Gain]:
    """Return what every attack gains under every defense, by their labels."""
    cells = [
        (defense, attack, done)
        for defense in scenario.defenses
        for attack in scenario.contenders
        if (done := scenario.done(defense, attack))
    ]
    found = {}
    for defense, attack, done in cells:
        seeds = [r.spec.seed for r in done]
        guesses = [scenario.chance(b, defense, seeds) for b in scenario.baselines]
        placebos = scenario.placebos.get((defense.label, attack), [])
        own = gain(done, guesses, placebos=placebos, tests=len(cells))
        if own is not None:
            found[defense.label, attack] = own
    return found


def _finding(
    scenario: Scenario, defense: Defended, found: Mapping[tuple[str, str], Gain]
) -> Finding:
    metric, label = scenario.headline, defense.label
    tried = [(name, scenario.done(defense, name)) for name in scenario.contenders]
    gaining = [(found[label, a].order, a) for a, _ in tried if (label, a) in found]
    best = _least(tried, metric)
    if gaining:
        _, attack = min(gaining)
    elif best is not None:
        attack = best[0]
    else:
        return Finding(defense)
    results = scenario.done(defense, attack)
    seeds, names = [r.spec.seed for r in results], sorted(scenario.baselines)
    guess = _least([(b, scenario.chance(b, defense, seeds)) for b in names], metric)
    return Finding(
        defense,
        attack,
        median(values(results, metric)),
        _in_words(results, metric),
        baseline="" if guess is None else guess[0],
        guessed=None if guess is None else _in_words(guess[1], metric),
        gain=found.get((label, attack)),
        recognises=any(r.recognises for r in results),
        headline=metric,
    )


def _least(
    candidates: Sequence[tuple[str, list[TrialResult]]], metric: str
) -> tuple[str, list[TrialResult]] | None:
    """Return the first candidate with the smallest median error, if any has one."""
    least, best = math.inf, None
    for name, results in candidates:
        error = median(values(results, metric))
        if error is not None and (best is None or error < least):
            least, best = error, (name, results)
    return best


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


def _examples(scenario: Scenario) -> str:
    name = scenario.spec.data["name"]
    return name if name.endswith("s") else f"{name} examples"


def _undefended(scenario: Scenario, finding: Finding) -> str:
    examples, own = _examples(scenario), finding.gain
    guess = f"guessing, {finding.baseline}: {finding.guessed}"
    if not finding.attack:
        return "Without a defense, no attack finished."
    if own is None:
        return (
            f"Without a defense, {finding.attack} reaches {finding.reached}; what a "
            f"guess reaches is not known."
        )
    match own.level:
        case "leak" if own.recovered:
            how = (
                f"{_verb(finding)} {finding.share} {examples} (95 % interval of the "
                f"share {finding.interval}); the median example is at "
                f"{finding.reached} ({guess})"
            )
        case "leak" | "slight":
            how = (
                f"recovers none of {own.examples} {examples}, but comes "
                f"{'much' if own.level == 'leak' else 'a little'} nearer than a "
                f"guess: {finding.reached} ({guess})"
            )
        case "unsure":
            return f"Without a defense, {_unsure(finding)} ({guess})."
        case _:
            return (
                f"Even without a defense, no attack is better than guessing "
                f"({finding.baseline}: {finding.guessed}; none of {own.examples} "
                f"recovered, so at most {100 * own.interval[1]:.0f} % are, with 95 % "
                f"confidence)."
            )
    return f"Without a defense, {finding.attack} {how}."


def _verb(finding: Finding) -> str:
    return "recognises among the public examples" if finding.recognises else "recovers"


def _unsure(finding: Finding) -> str:
    """Say that an attack came nearer, and what else may explain it."""
    own = finding.gain
    assert own is not None
    if own.is_guess:
        why = "but as near without their release (placebo): it is a good guess"
    elif len(set(own.seeds)) < 2:
        why = "which one seed cannot tell from chance: run more"
    else:
        why = "which chance may explain: run more seeds"
    return f"{finding.attack} comes nearer than guessing ({finding.reached}), {why}"


def _defended(found: Sequence[Finding]) -> list[str]:
    levels: dict[Level, list[Finding]] = {}
    for finding in found:
        levels.setdefault(finding.level, []).append(finding)
    sentences = []
    if leaking := levels.get("leak"):
        parts = []
        for attack in dict.fromkeys([f.attack for f in leaking]):
            own = [f for f in leaking if f.attack == attack]
            verb = "recognises" if own[0].recognises else "recovers"
            reached = [_reach(group) for group in _families(own)]
            parts.append(f"{attack} still {verb} {several(reached)}")
        sentences.append(f"With a defense, {'; '.join(parts)}.")
    if slight := levels.get("slight"):
        parts = also([_nearest(group) for group in _families(slight)])
        sentences.append(f"A little more than a guess is left with {parts}.")
    if unsure := levels.get("unsure"):
        parts = also([_nearest(group) for group in _families(unsure)])
        placebo = all(f.gain is not None and f.gain.is_guess for f in unsure)
        why = "as near without the release, by its placebo" if placebo else ""
        sentences.append(
            f"With {parts}, an attack comes nearer than guessing, "
            f"{why or 'which chance may explain: run more seeds'}."
        )
    if chance := levels.get("chance"):
        guesses = several(sorted({f.baseline for f in chance}), "or")
        most = max([f.gain.interval[1] for f in chance if f.gain is not None])
        sentences.append(
            f"With {also([_names(g) for g in _families(chance)])}, no attack is better "
            f"than guessing ({guesses}; at most {100 * most:.0f} % of the examples are "
            f"recovered, with 95 % confidence)."
        )
    groups = _families(levels.get("open", ()))
    if ended := [_nearest(group) for group in groups if group[0].attack]:
        sentences.append(f"What a guess reaches is not known with {also(ended)}.")
    if failed := [_names(group) for group in groups if not group[0].attack]:
        sentences.append(f"No attack finished with {also(failed)}.")
    return sentences


def _nearest(group: Sequence[Finding]) -> str:
    """Name defenses of one family with the attack that comes nearest, and how near."""
    return f"{_names(group)} ({group[-1].attack}: {_span(group)})"


def _families(found: Sequence[Finding]) -> list[list[Finding]]:
    """Put findings of one family together, weak to strong."""
    families: dict[str, list[Finding]] = {}
    for finding in found:
        families.setdefault(finding.defense.family, []).append(finding)
    return list(families.values())


def _reach(group: Sequence[Finding]) -> str:
    """Say what is recovered with defenses of one family, and how well."""
    counts = sorted({f.gain.recovered for f in group if f.gain is not None})
    examples = group[0].gain.examples if group[0].gain is not None else 0
    span = "–".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]]))
    return f"{span} of {examples} with {_names(group)} (median {_span(group)})"


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
    held = [f.defense for f in found if f.level in {"chance", "unsure", "slight"}]
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
    bare = [f.attack for f in found if f.gain and f.gain.needs_placebo]
    if bare:
        sentences.append(
            f"No placebo was run for {several(sorted(set(bare)))}, which may know more "
            f"than the guesses do beside what was released."
        )
    return sentences
