"""The rows of the tables: results, bounds, cost, facts, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exhume.audit.records import Flag, TrialResult
from exhume.audit.report.grouping import Defended, Scenario, examples, values
from exhume.audit.report.plots import bound_mse
from exhume.audit.report.verdict import Flags
from exhume.audit.report.words import count, finite, median, number, score
from exhume.errors import UnknownName
from exhume.registry import find

__all__ = [
    "BoundRow",
    "Chip",
    "CostRow",
    "FlagGroup",
    "ResultRow",
    "bound_rows",
    "cost_rows",
    "facts",
    "failures",
    "flag_groups",
    "in_clear",
    "metric_units",
    "result_rows",
]

#: attack or bound → defense → trials
_Places = dict[str, Counter[str]]
_SEVERITIES = ("alarm", "warning", "note")


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


@dataclass(frozen=True)
class BoundRow:
    """One bound under one defense: a value, or why there is none."""

    defense: str
    bound: str
    value: str
    error: str
    seeds: int
    ratio: str
    assumptions: tuple[str, ...]
    reference: str
    details: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class CostRow:
    """What one attack cost over the whole audit."""

    attack: str
    runs: int
    cpu: str
    total: str
    wall: str
    trial: str
    evaluations: str


@dataclass(frozen=True)
class FlagGroup:
    """All flags of one kind: each distinct sentence with the cells it was raised in."""

    kind: str
    severity: str
    trials: int
    sentences: tuple[tuple[str, tuple[str, ...]], ...]


def metric_units(metrics: Iterable[str]) -> dict[str, str]:
    """Map metrics to their units."""
    units = {}
    for metric in metrics:
        try:
            units[metric] = find("metric", metric).unit
        except UnknownName:
            units[metric] = "dB" if metric == "psnr" else ""
    return units


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
    units = metric_units(metrics)
    ended = Counter(r.outcome[1] if r.outcome else r.reason or r.status for r in tried)
    return ResultRow(
        defense=defense.label,
        place=scenario.defenses.index(defense),
        attack=attack,
        baseline=attack in scenario.baselines,
        adaptive=bool(done) and all(r.adaptive for r in done),
        trials=f"{examples(done)}" if done else "0",
        scores=tuple(_scored(done, metric, units[metric]) for metric in metrics),
        objective=_number(r.objective for r in done),
        at_truth=_number(r.objective_at_truth for r in done),
        outcomes=tuple(sorted(ended.items(), key=lambda item: (-item[1], item[0]))),
        notes=tuple(dict.fromkeys(note for r in done for note in r.notes)),
        cpu=_number((r.cost.get("cpu_seconds") for r in done), 2),
        evaluations=_number(r.cost.get("evaluations") for r in done),
        chips=_chips(tried, flags),
    )


def _scored(results: Sequence[TrialResult], metric: str, unit: str) -> Number:
    found = values(results, metric)
    middle = median(found)
    if middle is None:
        why = {r.not_applicable[metric] for r in results if metric in r.not_applicable}
        return Number("–", None, "; ".join(sorted(why)))
    spread = ""
    if len(found) > 1:
        low, high = score(metric, min(found)), score(metric, max(found))
        spread = f"{low} to {high} over {count(len(found), 'example')}"
    return Number(score(metric, middle, unit), middle, spread)


def _number(found: Iterable[float | None], digits: int = 3) -> Number:
    kept = finite(found)
    middle = median(kept)
    spread = ""
    if len(kept) > 1:
        spread = f"{number(min(kept))} to {number(max(kept))}"
    return Number(number(middle, digits), middle, spread)


def _chips(results: Sequence[TrialResult], flags: Flags) -> tuple[Chip, ...]:
    raised = [flag for r in results for flag in flags.get(r.spec.id, ())]
    kinds: dict[str, list[Flag]] = {}
    for flag in raised:
        kinds.setdefault(flag.kind, []).append(flag)
    chips = [
        Chip(kind, group[0].severity, len(group), group[0].sentence)
        for kind, group in kinds.items()
    ]
    return tuple(sorted(chips, key=lambda c: (_SEVERITIES.index(c.severity), c.kind)))


def flag_groups(listed: Sequence[Scenario], flags: Flags) -> list[FlagGroup]:
    """Gather the flags by kind, alarms first."""
    kinds: dict[tuple[str, str], dict[str, _Places]] = {}
    for scenario in listed:
        prefix = f"{scenario.name}, " if len(listed) > 1 else ""
        for (defense, name), results in scenario.trials.items():
            for flag in (f for r in results for f in flags.get(r.spec.id, ())):
                group = kinds.setdefault((flag.severity, flag.kind), {})
                places = group.setdefault(flag.sentence, {})
                places.setdefault(prefix + name, Counter())[defense] += 1
    return [
        FlagGroup(
            kind,
            severity,
            sum(n for p in group.values() for c in p.values() for n in c.values()),
            tuple((sentence, _told(places)) for sentence, places in group.items()),
        )
        for (severity, kind), group in sorted(
            kinds.items(), key=lambda item: (_SEVERITIES.index(item[0][0]), item[0][1])
        )
    ]


def _told(places: _Places) -> tuple[str, ...]:
    """Write where a flag was raised: attack: defense (×trials), defense."""
    return tuple(
        f"{name}: "
        + "; ".join(d if n == 1 else f"{d} (×{n})" for d, n in counts.items())
        for name, counts in places.items()
    )


def bound_rows(scenario: Scenario) -> list[BoundRow]:
    """Summarise every bound under every defense by its mean over seeds."""
    return [
        _bound_row(scenario, defense, bound)
        for defense in scenario.defenses
        for bound in scenario.bounds
        if (defense.label, bound) in scenario.trials
    ]


def _bound_row(scenario: Scenario, defense: Defended, bound: str) -> BoundRow:
    tried = scenario.trials[defense.label, bound]
    done = scenario.done(defense, bound)
    level = bound_mse(done)
    first = (done[0].bound or {}) if done else {}
    details = {
        key: median((r.bound or {}).get("details", {}).get(key) for r in done)
        for key in first.get("details", {})
    }
    details["prior fit (1 fits)"] = median(r.facts.get("prior_fit") for r in done)
    reasons = Counter(r.reason for r in tried if r.status != "done")
    return BoundRow(
        defense=defense.label,
        bound=bound,
        value=number(level[0] if level else None),
        error=number(level[1], 2) if level else "",
        seeds=len(done),
        ratio=_ratio(scenario, defense, level[0] if level else None),
        assumptions=tuple(first.get("assumptions", ())),
        reference=str(first.get("reference", "")),
        details=tuple(
            (k.replace("_", " "), number(v))
            for k, v in details.items()
            if v is not None
        ),
        reasons=tuple(sorted(reason for reason in reasons if reason)),
    )


def _ratio(scenario: Scenario, defense: Defended, bound: float | None) -> str:
    """Say how many times the bound the smallest average error of an attack is.

    A bound holds for examples in a known order, so errors are paired by label where
    that is possible, and matched elsewhere.
    """
    means = []
    for attack in scenario.contenders:
        done = scenario.done(defense, attack)
        in_order = finite(r.facts.get("ordered_mse") for r in done)
        errors = in_order if len(in_order) == len(done) else values(done, "mse")
        if errors:
            means.append((sum(errors) / len(errors), attack))
    if not means or not bound:
        return ""
    least, attack = min(means)
    return f"{number(least)} ({attack}), {number(least / bound, 2)} × the bound"


def cost_rows(listed: Sequence[Scenario]) -> list[CostRow]:
    """Add up what every attack and every bound cost."""
    spent: dict[str, list[TrialResult]] = {}
    for scenario in listed:
        for name in (*scenario.attacks, *scenario.bounds):
            cells = [scenario.done(d, name) for d in scenario.defenses]
            spent.setdefault(name, []).extend(r for c in cells for r in c if r.cost)
    return [
        CostRow(
            attack=name,
            runs=len(results),
            cpu=number(median(r.cost.get("cpu_seconds") for r in results)),
            total=number(sum(finite(r.cost.get("cpu_seconds") for r in results))),
            wall=number(median(r.cost.get("wall_seconds") for r in results)),
            trial=number(median(r.seconds for r in results)),
            evaluations=number(median(r.cost.get("evaluations") for r in results)),
        )
        for name, results in spent.items()
        if results
    ]


def facts(scenario: Scenario) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Tabulate the numbers about each setting: their names, and medians by defense."""
    names = sorted({name for r in scenario.results for name in r.facts})
    rows = []
    for defense in scenario.defenses:
        cell = [
            r
            for (label, _), results in scenario.trials.items()
            if label == defense.label
            for r in results
        ]
        medians = [number(median(r.facts.get(name) for r in cell)) for name in names]
        rows.append((defense.label, medians))
    return [name.replace("_", " ") for name in names], rows


def failures(listed: Sequence[Scenario]) -> list[tuple[str, str, int, str]]:
    """List what did not run: attack or bound, defense, seed and the reason."""
    return [
        (name, defense, result.spec.seed, result.reason or "no reason was given")
        for scenario in listed
        for (defense, name), results in scenario.trials.items()
        for result in results
        if result.status == "failed"
    ]


def in_clear(listed: Sequence[Scenario]) -> list[tuple[str, str]]:
    """List the tensors that each defense left untouched."""
    found: dict[str, str] = {}
    for scenario in listed:
        for (defense, _), results in scenario.trials.items():
            for result in results:
                if result.released_in_clear and result.spec.defenses:
                    found.setdefault(defense, ", ".join(result.released_in_clear))
    return sorted(found.items())
