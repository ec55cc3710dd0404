"""The tables of a report: one row per attack and defense, and the flags by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from exhume.audit.report.results import Defended, Scenario, described, values
from exhume.audit.report.verdict import Flags
from exhume.report.words import count, finite, median, number, score
from exhume.runs.records import Flag, TrialResult

__all__ = [
    "SEVERITIES",
    "Chip",
    "FlagGroup",
    "Number",
    "ResultRow",
    "flag_groups",
    "result_rows",
]

#: the gravest first
SEVERITIES = ("alarm", "warning", "note")


@dataclass(frozen=True)
class Chip:
    """A flag of a cell: its kind, severity, how many trials carry it, and why."""

    kind: str
    severity: str
    trials: int
    sentence: str


@dataclass(frozen=True)
class Number:
    """A number in a sortable table: for the eye, for sorting, and its spread."""

    text: str
    value: float | None
    spread: str = ""

    @property
    def sorting(self) -> str:
        """The value in a form that a script reads, or "" to come last."""
        return "" if self.value is None else repr(self.value)


@dataclass(frozen=True)
class ResultRow:
    """One attack under one defense, over all seeds and examples."""

    defense: str
    place: int
    attack: str
    baseline: bool
    adaptive: bool
    trials: str
    scores: tuple[Number, ...]
    objective: Number
    at_truth: Number
    outcomes: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    cpu: Number
    evaluations: Number
    chips: tuple[Chip, ...]


def result_rows(
    scenario: Scenario, flags: Flags, metrics: Sequence[str]
) -> list[ResultRow]:
    """Summarise every attack under every defense by medians over examples."""
    return [
        _result_row(scenario, defense, attack, flags, metrics)
        for defense in scenario.defenses
        for attack in scenario.attacks
        if (defense.label, attack) in scenario.trials
    ]


def _result_row(
    scenario: Scenario,
    defense: Defended,
    attack: str,
    flags: Flags,
    metrics: Sequence[str],
) -> ResultRow:
    tried = scenario.trials[defense.label, attack]
    done = scenario.done(defense, attack)
    ended = sorted(r.outcome[1] if r.outcome else r.reason or r.status for r in tried)
    return ResultRow(
        defense=defense.label,
        place=scenario.defenses.index(defense),
        attack=attack,
        baseline=attack in scenario.baselines,
        adaptive=bool(done) and all(r.adaptive for r in done),
        trials=str(sum(max(map(len, r.scores.values()), default=0) for r in done)),
        scores=tuple(_scored(done, metric) for metric in metrics),
        objective=_number(r.objective for r in done),
        at_truth=_number(r.objective_at_truth for r in done),
        outcomes=tuple(Counter(ended).most_common()),
        notes=tuple(dict.fromkeys(note for r in done for note in r.notes)),
        cpu=_number((r.cost.get("cpu_seconds") for r in done), 2),
        evaluations=_number(r.cost.get("evaluations") for r in done),
        chips=_chips(tried, flags),
    )


def _scored(results: Sequence[TrialResult], metric: str) -> Number:
    found = values(results, metric)
    # The median of zeros and ones is one of them: it would hide a wrong label of three.
    middle = median(found) if metric != "label-accuracy" or not found else fmean(found)
    if middle is None:
        why = {r.not_applicable[metric] for r in results if metric in r.not_applicable}
        return Number("–", None, "; ".join(sorted(why)))
    spread = ""
    if len(found) > 1:
        low, high = score(metric, min(found)), score(metric, max(found))
        spread = f"{low} to {high} over {count(len(found), 'example')}"
    return Number(score(metric, middle, described(metric).unit), middle, spread)


def _number(found: Iterable[float | None], digits: int = 3) -> Number:
    kept = finite(found)
    middle = median(kept)
    spread = ""
    if len(kept) > 1:
        spread = f"{number(min(kept))} to {number(max(kept))}"
    return Number(number(middle, digits), middle, spread)


def _chips(results: Sequence[TrialResult], flags: Flags) -> tuple[Chip, ...]:
    """Count the flags of a cell by kind, the gravest first."""
    kinds: dict[str, list[Flag]] = {}
    for result in results:
        for flag in flags.get(result.spec.id, ()):
            kinds.setdefault(flag.kind, []).append(flag)
    ranked = sorted([(SEVERITIES.index(g[0].severity), k) for k, g in kinds.items()])
    chips = []
    for _, kind in ranked:
        first = kinds[kind][0]
        chips.append(Chip(kind, first.severity, len(kinds[kind]), first.sentence))
    return tuple(chips)


# --- flags ----------------------------------------------------------------------------

#: attack or bound → defense → trials
_Places = dict[str, Counter[str]]


@dataclass(frozen=True)
class FlagGroup:
    """All flags of one kind: each distinct sentence with the cells it was raised in."""

    kind: str
    severity: str
    trials: int
    sentences: tuple[tuple[str, tuple[str, ...]], ...]


def flag_groups(listed: Sequence[Scenario], flags: Flags) -> list[FlagGroup]:
    """Gather the flags by kind, alarms first."""
    kinds: dict[tuple[int, str], dict[str, _Places]] = {}
    raised = Counter[tuple[int, str]]()
    for scenario in listed:
        prefix = f"{scenario.name}, " if len(listed) > 1 else ""
        for (defense, name), results in scenario.trials.items():
            for result in results:
                for flag in flags.get(result.spec.id, ()):
                    rank = SEVERITIES.index(flag.severity), flag.kind
                    raised[rank] += 1
                    places = kinds.setdefault(rank, {}).setdefault(flag.sentence, {})
                    places.setdefault(prefix + name, Counter())[defense] += 1
    groups = []
    for rank in sorted(kinds):
        told = [(sentence, _where(places)) for sentence, places in kinds[rank].items()]
        severity, kind = SEVERITIES[rank[0]], rank[1]
        groups.append(FlagGroup(kind, severity, raised[rank], tuple(told)))
    return groups


def _where(places: _Places) -> tuple[str, ...]:
    """Write where a flag was raised: attack: defense (×trials), defense."""
    told = []
    for name, counts in places.items():
        cells = [d if n == 1 else f"{d} (×{n})" for d, n in counts.items()]
        told.append(f"{name}: {'; '.join(cells)}")
    return tuple(told)
