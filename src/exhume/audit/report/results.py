"""Stored results as a report reads them: sorted, and with words for what they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np

from exhume.audit.settings import AuditSettings, as_options, listed
from exhume.errors import ExhumeError, UnknownName
from exhume.problem.event import EventSpec
from exhume.registry import find
from exhume.report.pictures import Picture, line
from exhume.report.words import (
    defense_family,
    defense_label,
    defense_strength,
    finite,
)
from exhume.runs.records import Options, TrialResult, TrialSpec, content_hash

__all__ = [
    "Defended",
    "Described",
    "Scenario",
    "described",
    "drawing",
    "event_of",
    "examples_of",
    "grouped",
    "headline",
    "is_upper_limit",
    "labels",
    "metrics_of",
    "ordered",
    "scenarios",
    "values",
]


@dataclass(frozen=True)
class Defended:
    """One stack of defenses, with the words and the place it has in the report.

    Attributes:
        label: in words, from the stack alone.
        family: stacks of one family differ in strength only; "" for no defense.
        strength: (option, value) of the strength, or None.
    """

    label: str
    family: str
    strength: tuple[str, float] | None

    @property
    def is_none(self) -> bool:
        """Whether nothing defends."""
        return self.family == ""


@dataclass(frozen=True)
class Scenario:
    """All trials that share everything but seed, defense, attack and bound.

    Attributes:
        name: of the data, e.g. "faces".
        spec: one of the specs, for what they share.
        results: every trial.
        headline: the metric that ranks attacks, smaller for better ones.
        trials: (defense label, attack or bound label) → results by seed.
        contenders: labels of the attacks that are no chance level.
        baselines: labels of the chance levels.
        bounds: labels.
        defenses: no defense first, then by family and strength.
        seeds: ascending.
        placebos: (defense label, attack label) → trials on the release of others.
    """

    name: str
    spec: TrialSpec
    results: tuple[TrialResult, ...]
    headline: str
    trials: dict[tuple[str, str], list[TrialResult]]
    contenders: tuple[str, ...]
    baselines: tuple[str, ...]
    bounds: tuple[str, ...]
    defenses: tuple[Defended, ...]
    seeds: tuple[int, ...]
    placebos: dict[tuple[str, str], list[TrialResult]] = field(default_factory=dict)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Labels of all attacks, chance levels last."""
        return self.contenders + self.baselines

    def done(self, defense: Defended, name: str) -> list[TrialResult]:
        """Return the finished trials of one attack or bound under one defense."""
        cell = self.trials.get((defense.label, name), [])
        return [r for r in cell if r.status == "done"]

    def trial(self, defense: Defended, name: str, seed: int) -> TrialResult | None:
        """Return the trial of one attack or bound under one defense for one seed."""
        for result in self.trials.get((defense.label, name), []):
            if result.spec.seed == seed:
                return result
        return None

    def chance(
        self, baseline: str, defense: Defended, seeds: Iterable[int]
    ) -> list[TrialResult]:
        """Return the trials of a chance level for some seeds under one defense.

        A seed that lacks one (an interrupted audit) lends it from another defense: the
        prior mean is the same everywhere, the nearest public example nearly so.
        """
        found: dict[int, TrialResult] = {}
        for place in (defense, *self.defenses):
            for result in self.done(place, baseline):
                found.setdefault(result.spec.seed, result)
        return [found[seed] for seed in seeds if seed in found]


def values(results: Sequence[TrialResult], metric: str) -> list[float]:
    """Collect one metric over every example of some trials, where it is defined."""
    return finite(v for r in results for v in r.scores.get(metric, []))


def labels(options: Iterable[Options | None]) -> dict[str, str]:
    """Map the canonical JSON of objects to their shortest distinct names.

    A name that occurs with one set of options stands alone; otherwise the options that
    differ are added: ``gauss-newton (iterations=10)``.
    """
    distinct = {_canonical(o): o for o in options if o is not None}
    result: dict[str, str] = {}
    for text, option in distinct.items():
        rivals = [o for o in distinct.values() if o["name"] == option["name"]]
        details = [
            f"{key}={value}"
            for key, value in sorted(option.items())
            if any(_canonical(o.get(key)) != _canonical(value) for o in rivals)
        ]
        result[text] = option["name"] + (f" ({', '.join(details)})" if details else "")
    return result


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def grouped(
    results: Iterable[TrialResult], *ignored: str
) -> dict[str, list[TrialResult]]:
    """Group trials by everything in their specs but some fields.

    What scores an attack never counts: it stands beside bounds, which have no scores.
    """
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        spec = asdict(result.spec)
        for name in ("metrics", *ignored):
            del spec[name]
        groups.setdefault(content_hash(spec), []).append(result)
    return groups


def ordered(
    settings: AuditSettings, results: Sequence[TrialResult]
) -> list[TrialResult]:
    """Sort trials by data, defense, attack and seed, whatever order they came in."""
    return [
        result
        for scenario in scenarios(settings, results)
        for defense in scenario.defenses
        for name in (*scenario.attacks, *scenario.bounds)
        for cells in (scenario.trials, scenario.placebos)
        for result in cells.get((defense.label, name), [])
    ]


def scenarios(
    settings: AuditSettings, results: Sequence[TrialResult]
) -> list[Scenario]:
    """Group results by everything but seed, defense, attack, metrics and bound."""
    by_id = sorted(results, key=attrgetter("spec.id"))
    varied = ("seed", "defenses", "attack", "bound", "placebo")
    groups = grouped(by_id, *varied).values()
    names = {
        kind: labels(map(attrgetter(f"spec.{kind}"), results))
        for kind in ("data", "attack", "bound")
    }
    sources = _names(settings.data)
    made = [_scenario(settings, group, names) for group in groups]
    return sorted(
        made, key=lambda s: (_index(sources, s.spec.data["name"]), s.name, s.spec.id)
    )


def _index(known: Sequence[Any], name: Any) -> int:
    return known.index(name) if name in known else len(known)


def _scenario(
    settings: AuditSettings, group: list[TrialResult], names: dict[str, dict[str, str]]
) -> Scenario:
    trials: dict[tuple[str, str], list[TrialResult]] = {}
    attacks: dict[str, str] = {}
    baselines, bounds = set[str](), set[str]()
    placebos: dict[tuple[str, str], list[TrialResult]] = {}
    defenses: dict[str, tuple[tuple[Any, ...], Defended]] = {}
    stacks = [_names(entry) for entry in settings.defenses]
    by_seed = sorted(group, key=attrgetter("spec.seed"))
    for result in by_seed:
        spec = result.spec
        if spec.placebo:
            cell = (
                defense_label(spec.defenses),
                names["attack"][_canonical(spec.attack)],
            )
            placebos.setdefault(cell, []).append(result)
            continue
        if spec.attack is not None:
            name = names["attack"][_canonical(spec.attack)]
            attacks[name] = spec.attack["name"]
            if _is_guess(result):
                baselines.add(name)
        else:
            name = names["bound"][_canonical(spec.bound)]
            bounds.add(name)
        label, stack = defense_label(spec.defenses), spec.defenses
        trials.setdefault((label, name), []).append(result)
        if label not in defenses:
            defense = Defended(label, defense_family(stack), defense_strength(stack))
            place = _index(stacks, _names(stack)) if stack else -1
            defenses[label] = ((place, *_strength_order(defense)), defense)
    first = [*_names(settings.attacks), "prior-mean"]
    ranked = sorted((_index(first, attacks[label]), label) for label in attacks)
    return Scenario(
        name=names["data"][_canonical(group[0].spec.data)],
        spec=group[0].spec,
        results=tuple(r for r in by_seed if not r.spec.placebo),
        headline=headline(by_seed),
        trials=trials,
        contenders=tuple(label for _, label in ranked if label not in baselines),
        baselines=tuple(label for _, label in ranked if label in baselines),
        bounds=tuple(sorted(bounds)),
        # Labels differ, so that defenses themselves are never compared.
        defenses=tuple(defense for _, defense in sorted(defenses.values())),
        seeds=tuple(dict.fromkeys(r.spec.seed for r in by_seed)),
        placebos=placebos,
    )


def _names(given: Sequence[Options | str] | Options | str) -> list[str]:
    """Return the names of one entry of a list in the settings."""
    return [as_options(one)["name"] for one in listed(given)]


def _strength_order(defense: Defended) -> tuple[str, float, str]:
    """Sort weak to strong: an upper limit is the stronger, the smaller it is."""
    option, strength = defense.strength or ("", 0.0)
    signed = -strength if is_upper_limit(option) else strength
    return (defense.family, signed, defense.label)


def is_upper_limit(option: str) -> bool:
    """Say whether a strength limits something from above: a norm, a privacy budget."""
    return option.startswith("max") or option == "epsilon"


def _is_guess(result: TrialResult) -> bool:
    """Look up whether an attack is a chance level; a trial that failed cannot say.

    Nor can one of an older version, which took recognition for a guess.
    """
    assert result.spec.attack is not None
    try:
        name = result.spec.attack["name"]
        return bool(find("attack", name, own="loaded").baseline)
    except UnknownName:  # an own module, which is not imported for a page
        return result.baseline


# --- metrics and examples in words ----------------------------------------------------

#: metrics in the order of the columns, behind the headline; others follow by name
_ORDER = ("mse", "psnr", "ssim", "ncc", "label-accuracy")


@dataclass(frozen=True)
class Described:
    """A metric in words, see :class:`~exhume.problem.metric.Metric`.

    Attributes:
        label: heading of its column.
        quantity: what it is in a sentence.
        unit: of its values, or "".
        first: order in which a table shows the best first.
    """

    label: str
    quantity: str
    unit: str = ""
    first: str = "ascending"

    def axis(self, whose: str) -> str:
        """Write the label of an axis: quantity, whose it is, and the unit."""
        return f"{self.quantity} {whose}" + (f", {self.unit}" if self.unit else "")


def described(metric: str) -> Described:
    """Describe a metric, given its key; one that is not known here by the key alone."""
    name, bracket, options = metric.partition("(")
    with_options = f" {bracket}{options}" if options else ""
    try:
        found: Any = find("metric", name, own="loaded")
    except UnknownName:
        found = None
    words = re.sub("[-_]", " ", name.rpartition(".")[2])
    label = (getattr(found, "label", "") or words) + with_options
    if found is None:
        return Described(label, label)
    first = "descending" if found.higher_is_better else "ascending"
    return Described(label, found.quantity or label, found.unit, first)


def headline(results: Sequence[TrialResult]) -> str:
    """Return the metric that ranks the attacks of some trials on one kind of data."""
    for result in results:
        if result.event is not None:
            return result.headline
    return "mse"


def metrics_of(results: Sequence[TrialResult]) -> list[str]:
    """List the metrics of some trials in the order of the columns.

    The usual ones and those that the audit names are there even where they do not fit
    the data, and say why.
    """
    scored = set[str]().union(*(r.scores for r in results))
    known = scored.union(*(r.not_applicable for r in results))
    first = dict.fromkeys([*(r.headline for r in results if r.scores), *_ORDER])
    asked = [options["name"] for r in results for options in r.spec.metrics]
    others = scored.union([m for m in known if m.partition("(")[0] in asked])
    return [m for m in first if m in known] + sorted(others.difference(first))


def event_of(result: TrialResult) -> EventSpec | None:
    """Return the event that a result recorded.

    Results of versions that did not record it have that of the shape of their arrays.
    It is None if nothing tells it, or if its kind is neither registered nor
    a module that is imported already.
    """
    if result.event is not None:
        return _recorded(json.dumps(result.event))
    shapes = [array.shape[1:] for array in result.arrays.values() if array.ndim > 1]
    return _of_shape(shapes[0]) if shapes else None


def drawing(result: TrialResult) -> Callable[[np.ndarray, np.ndarray], Picture]:
    """Return what draws an example over its truth; lines where the event is unknown."""
    event = event_of(result)
    return line if event is None else event.draw


def examples_of(results: Sequence[TrialResult]) -> tuple[str, bool]:
    """Say what the examples of some results are.

    Returns:
        what one is called: the word of their event if all agree; and whether some are
        grids of pixels.
    """
    known = [e for e in map(event_of, results) if e is not None]
    nouns = list(dict.fromkeys(event.noun for event in known))
    noun = nouns[0] if len(nouns) == 1 else "example"
    return noun, any(event.grid is not None for event in known)


@lru_cache(maxsize=16)
def _recorded(record: str) -> EventSpec | None:
    try:
        return EventSpec.from_record(json.loads(record), own="loaded")
    except ExhumeError:
        return None


@lru_cache(maxsize=16)
def _of_shape(shape: tuple[int, ...]) -> EventSpec | None:
    try:
        return EventSpec.of_shape(shape)
    except ExhumeError:
        return None
