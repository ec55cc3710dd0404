"""Assemble everything the page shows, and render it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exhume.audit.report.bounds import (
    BoundRow,
    Exposure,
    Promise,
    bound_rows,
    exposure,
    promises,
)
from exhume.audit.report.described import (
    described,
    has_pixels,
    headline,
    metrics_of,
    noun_of,
)
from exhume.audit.report.gallery import Gallery, gallery, hero
from exhume.audit.report.grouping import Scenario, scenarios
from exhume.audit.report.memory import Memory, memory
from exhume.audit.report.plots import convergence, error_plots, legend
from exhume.audit.report.tables import ResultRow, flag_groups, result_rows
from exhume.audit.report.verdict import Flags, findings, verdict
from exhume.audit.settings import AuditSettings
from exhume.errors import ExhumeError, UnknownName
from exhume.problem.presets import PRESETS
from exhume.registry import find
from exhume.report.page import citations, methods, render
from exhume.report.pictures import Legend, Picture, Plot
from exhume.report.words import count, finite, median, number, object_label, several
from exhume.runs.records import BOUNDED_METRIC, TrialResult
from exhume.runs.settings import to_toml

__all__ = [
    "MOST_PICTURES",
    "CostRow",
    "Section",
    "cost_rows",
    "facts",
    "failures",
    "in_clear",
    "page",
]

#: More pictures than this make a file that browsers and mail refuse; the numbers of
#: the others are in the tables and in the CSV.
MOST_PICTURES = 1200


@dataclass(frozen=True)
class Section:
    """One scenario as the page shows it."""

    name: str
    noun: str
    pixels: bool
    verdict: str
    hero: list[tuple[str, Picture]]
    setting: tuple[tuple[str, str], ...]
    gallery: Gallery
    legend: list[Legend]
    plots: list[Plot]
    rows: list[ResultRow]
    memory: list[Memory]
    bounds: list[BoundRow]
    promises: list[Promise]
    exposure: list[Exposure]
    course: tuple[str, list[Plot]]
    facts: tuple[list[str], list[tuple[str, list[str]]]]


def page(settings: AuditSettings, results: Sequence[TrialResult], flags: Flags) -> str:
    """Render the report as one HTML page without any outside reference."""
    view = _view(settings, results, flags)
    return render("exhume.audit.report", "audit.html.j2", view)


def _view(
    settings: AuditSettings, results: Sequence[TrialResult], flags: Flags
) -> dict[str, Any]:
    listed = scenarios(settings, results)
    metrics = metrics_of(results)
    return {
        "title": settings.title,
        "unfinished": _unfinished(settings, results),
        "sections": [
            _section(scenario, flags, metrics, index, len(listed))
            for index, scenario in enumerate(listed)
        ],
        "noun": noun_of(results),
        "pixels": has_pixels(results),
        "squared": headline(results) == BOUNDED_METRIC,
        "metrics": metrics,
        "described": {metric: described(metric) for metric in metrics},
        "tiles": _tiles(listed, flags),
        "threat": _threat(settings, results),
        "flags": flag_groups(listed, flags),
        "costs": cost_rows(listed),
        "failures": failures(listed),
        "in_clear": in_clear(listed),
        "versions": _versions(results),
        "bibtex": citations(methods(results)),
        "toml": to_toml(settings),
    }


def _unfinished(settings: AuditSettings, results: Sequence[TrialResult]) -> str:
    """Say how much of the audit has ended, or "" if all of it (or nobody knows)."""
    from exhume.audit.settings import expand

    try:
        recorded = [result.spec for result in results]
        planned = {spec.id for spec in expand(settings, recorded=recorded)}
    except ExhumeError:  # made elsewhere, from settings that do not build here
        return ""
    ended = {result.spec.id for result in results}
    if not ended < planned:
        return ""
    return (
        f"This audit is not finished: {len(ended)} of {len(planned)} trials have ended."
    )


def _section(
    scenario: Scenario, flags: Flags, metrics: Sequence[str], index: int, sections: int
) -> Section:
    pictures = gallery(scenario, MOST_PICTURES // sections)
    found = findings(scenario)
    return Section(
        name=scenario.name,
        noun=noun_of(scenario.results),
        pixels=has_pixels(scenario.results),
        verdict=verdict(scenario, found, flags),
        hero=hero(pictures, found),
        setting=_setting(scenario),
        gallery=pictures,
        legend=legend(scenario),
        plots=error_plots(scenario, f"error-{index}"),
        rows=result_rows(scenario, flags, metrics),
        memory=memory(scenario),
        bounds=bound_rows(scenario),
        promises=promises(scenario),
        exposure=exposure(scenario),
        course=convergence(scenario, f"course-{index}"),
        facts=facts(scenario),
    )


def _setting(scenario: Scenario) -> tuple[tuple[str, str], ...]:
    spec = scenario.spec
    parameters = median(r.facts.get("parameters") for r in scenario.results)
    network = object_label("model", spec.model)
    if parameters is not None:
        network += f", {_thousands(parameters)} parameters"
    shared = object_label("observation", spec.observation)
    mode = {"eval": "evaluation", "train": "training"}[spec.mode]
    return (
        ("Private data", object_label("data", spec.data)),
        ("Licence of the data", _licence(spec.data["name"])),
        ("Network", network),
        ("What is shared", f"{shared}, {spec.loss} loss, {mode} mode"),
        ("Batch size", str(spec.batch_size)),
        ("Precision", spec.dtype),
        ("Prior", "none" if spec.prior is None else object_label("prior", spec.prior)),
        ("Defenses", "; ".join(d.label for d in scenario.defenses)),
        ("Attacks", several(scenario.contenders) or "none"),
        (
            "Chance levels",
            several([a for a in scenario.attacks if a in scenario.baselines]) or "none",
        ),
        ("Seeds", _ranges(scenario.seeds)),
    )


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def _licence(name: str) -> str:
    try:
        return find("data", name, own="loaded").licence or "not stated"
    except UnknownName:
        return "not known here"


def _ranges(seeds: Sequence[int]) -> str:
    if len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    return ", ".join(map(str, seeds))


def _threat(settings: AuditSettings, results: Sequence[TrialResult]) -> dict[str, Any]:
    """Put the threat model in words, and say of each fact whether it is known."""
    from exhume.problem.knowledge import Fact

    preset = PRESETS.get(settings.threat)
    if preset is None:
        return {"name": settings.threat, "letter": "", "description": "", "facts": []}
    absent = {"PRIOR"} if settings.prior is None else set()
    if not any(r.facts.get("batch_norm_layers") for r in results):
        absent.add("BATCH_NORM_STATISTICS")
    shared = settings.observation
    name = shared if isinstance(shared, str) else shared["name"]
    steps = name == "update"
    of_steps = set() if steps else {"LEARNING_RATE", "BATCH_ORDER"}
    return {
        "name": settings.threat,
        "letter": preset.letter,
        "description": preset.description,
        "facts": [
            (fact.value, fact.name in preset.facts and fact.name not in absent)
            for fact in Fact
            if fact.name not in of_steps
        ],
    }


def _tiles(listed: Sequence[Scenario], flags: Flags) -> list[tuple[str, str, str]]:
    """Sum up the audit in a few numbers: figure, what it counts, tone."""
    results = [r for scenario in listed for r in scenario.results]
    by_status = {
        status: sum(r.status == status for r in results)
        for status in ("done", "failed", "not-applicable")
    }
    raised = [f for r in results for f in flags.get(r.spec.id, ())]
    alarms = sum(f.severity == "alarm" for f in raised)
    seconds = sum(finite(r.cost.get("cpu_seconds") for r in results))
    tiles = [
        (str(by_status["done"]), _noun(by_status["done"], "trial") + " finished", ""),
        (str(by_status["failed"]), "failed", "bad" if by_status["failed"] else ""),
        (str(alarms), _noun(alarms, "alarm"), "bad" if alarms else ""),
        (f"{number(seconds)} s", "CPU time of the attacks", ""),
    ]
    if by_status["not-applicable"]:
        tiles.insert(2, (str(by_status["not-applicable"]), "not applicable", ""))
    return tiles


def _noun(n: int, noun: str) -> str:
    return count(n, noun).split(" ", 1)[1]


def _versions(results: Sequence[TrialResult]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for result in results:
        for package, version in result.versions.items():
            found.setdefault(package, set()).add(version)
    return [(package, ", ".join(sorted(v))) for package, v in sorted(found.items())]


# Facts of the answer of one attack: a median over attacks would mean nothing.
_OF_ATTACKS = ("recovered_", "held_out", "null_level", "ordered_mse")


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
    told = {name for r in scenario.results for name in r.facts}
    names = sorted(name for name in told if not name.startswith(_OF_ATTACKS))
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
