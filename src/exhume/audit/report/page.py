"""Assemble everything the page shows, and render it."""

from __future__ import annotations

from collections import Counter
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
from exhume.audit.report.gallery import Gallery, gallery, hero
from exhume.audit.report.memory import Memory, memory
from exhume.audit.report.plots import convergence, error_plots, legend
from exhume.audit.report.results import (
    Scenario,
    described,
    examples_of,
    headline,
    metrics_of,
    scenarios,
)
from exhume.audit.report.tables import ResultRow, flag_groups, result_rows
from exhume.audit.report.verdict import Finding, Flags, findings, verdict
from exhume.audit.settings import AuditSettings, expand
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
    findings: list[Finding]
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
    listed = scenarios(settings, results)
    metrics = metrics_of(results)
    noun, pixels = examples_of(results)
    view = {
        "title": settings.title,
        "unfinished": _unfinished(settings, results),
        "sections": [
            _section(scenario, flags, metrics, index, len(listed))
            for index, scenario in enumerate(listed)
        ],
        "noun": noun,
        "pixels": pixels,
        "squared": headline(results) == BOUNDED_METRIC,
        "metrics": metrics,
        "described": {metric: described(metric) for metric in metrics},
        "tiles": _tiles(results, flags),
        "threat": _threat(settings, results),
        "flags": flag_groups(listed, flags),
        "costs": cost_rows(listed),
        "failures": failures(listed),
        "in_clear": in_clear(listed),
        "versions": _versions(results),
        "bibtex": citations(methods(results)),
        "toml": to_toml(settings),
    }
    return render("exhume.audit.report", "audit.html.j2", view)


def _unfinished(settings: AuditSettings, results: Sequence[TrialResult]) -> str:
    """Say how much of the audit has ended, or "" if all of it (or nobody knows)."""
    try:
        recorded = [result.spec for result in results]
        planned = {spec.id for spec in expand(settings, recorded=recorded)}
    except ExhumeError:  # made elsewhere, from settings that do not build here
        return ""
    ended = {result.spec.id for result in results if not result.spec.placebo}
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
    noun, pixels = examples_of(scenario.results)
    return Section(
        name=scenario.name,
        noun=noun,
        pixels=pixels,
        verdict=verdict(scenario, found, flags),
        findings=found,
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
        thousands = f"{parameters:,.0f}".replace(",", "\u202f")
        network += f", {thousands} parameters"
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
        ("Chance levels", several(scenario.baselines) or "none"),
        ("Seeds", _ranges(scenario.seeds)),
    )


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


def _tiles(results: Sequence[TrialResult], flags: Flags) -> list[tuple[str, str, str]]:
    """Sum up the audit in a few numbers: figure, what it counts, tone."""
    ended = Counter(r.status for r in results)
    alarms = sum(
        f.severity == "alarm" for r in results for f in flags.get(r.spec.id, ())
    )
    seconds = sum(finite(r.cost.get("cpu_seconds") for r in results))
    done, trials = count(ended["done"], "trial").split(" ")
    raised, noun = count(alarms, "alarm").split(" ")
    tiles = [
        (done, f"{trials} finished", ""),
        (str(ended["failed"]), "failed", "bad" if ended["failed"] else ""),
        (raised, noun, "bad" if alarms else ""),
        (f"{number(seconds)} s", "CPU time of the attacks", ""),
    ]
    if ended["not-applicable"]:
        tiles.insert(2, (str(ended["not-applicable"]), "not applicable", ""))
    return tiles


def _versions(results: Sequence[TrialResult]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for result in results:
        for package, version in result.versions.items():
            found.setdefault(package, set()).add(version)
    return [(package, ", ".join(sorted(v))) for package, v in sorted(found.items())]


# --- cost and failures ----------------------------------------------------------------

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
            for defense in scenario.defenses:
                spent.setdefault(name, []).extend(scenario.done(defense, name))
    rows = []
    for name, done in spent.items():
        results = [r for r in done if r.cost]
        cpu = [r.cost.get("cpu_seconds") for r in results]
        if results:
            row = CostRow(
                attack=name,
                runs=len(results),
                cpu=number(median(cpu)),
                total=number(sum(finite(cpu))),
                wall=number(median([r.cost.get("wall_seconds") for r in results])),
                trial=number(median([r.seconds for r in results])),
                evaluations=number(
                    median([r.cost.get("evaluations") for r in results])
                ),
            )
            rows.append(row)
    return rows


def facts(scenario: Scenario) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Tabulate the numbers about each setting: their names, and medians by defense."""
    told = {name for r in scenario.results for name in r.facts}
    names = sorted([name for name in told if not name.startswith(_OF_ATTACKS)])
    rows = []
    for defense in scenario.defenses:
        cells = [r for (d, _), r in scenario.trials.items() if d == defense.label]
        medians = []
        for name in names:
            found = [r.facts.get(name) for cell in cells for r in cell]
            medians.append(number(median(found)))
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
