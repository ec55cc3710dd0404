"""Sort the trials of an audit into scenarios, defenses and attacks, in fixed order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exhume.audit.report.described import headline
from exhume.audit.settings import AuditSettings, as_options
from exhume.errors import UnknownName
from exhume.registry import find
from exhume.report.words import defense_family, defense_label, defense_strength, finite
from exhume.runs.records import Options, TrialResult, TrialSpec, content_hash

__all__ = [
    "Defended",
    "Scenario",
    "examples",
    "is_upper_limit",
    "labels",
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
        trials: (defense label, attack or bound label) → results by seed.
        attacks: labels, baselines last.
        baselines: labels of the chance levels.
        bounds: labels.
        defenses: no defense first, then by family and strength.
        seeds: ascending.
    """

    name: str
    spec: TrialSpec
    trials: dict[tuple[str, str], list[TrialResult]]
    attacks: tuple[str, ...]
    baselines: frozenset[str]
    bounds: tuple[str, ...]
    defenses: tuple[Defended, ...]
    seeds: tuple[int, ...]

    @property
    def results(self) -> list[TrialResult]:
        """Every trial of the scenario."""
        return [result for cell in self.trials.values() for result in cell]

    @property
    def headline(self) -> str:
        """The metric that ranks attacks, smaller for better ones."""
        return headline(self.results)

    @property
    def contenders(self) -> tuple[str, ...]:
        """Attacks that are no chance level."""
        return tuple(a for a in self.attacks if a not in self.baselines)

    def done(self, defense: Defended, name: str) -> list[TrialResult]:
        """Return the finished trials of one attack or bound under one defense."""
        cell = self.trials.get((defense.label, name), [])
        return [r for r in cell if r.status == "done"]

    def trial(self, defense: Defended, name: str, seed: int) -> TrialResult | None:
        """Return the trial of one attack or bound under one defense for one seed."""
        cell = self.trials.get((defense.label, name), [])
        return next((r for r in cell if r.spec.seed == seed), None)

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


def examples(results: Sequence[TrialResult]) -> int:
    """Count the scored examples of some trials."""
    return sum(max(map(len, r.scores.values()), default=0) for r in results)


def labels(options: Iterable[Options | None]) -> dict[str, str]:
    """Map the canonical JSON of objects to their shortest distinct names.

    A name that occurs with one set of options stands alone; otherwise the options that
    differ are added: ``gauss-newton (iterations=10)``.
    """
    distinct = {_canonical(o): o for o in options if o is not None}
    result: dict[str, str] = {}
    for text, option in distinct.items():
        rivals = [o for o in distinct.values() if o["name"] == option["name"]]
        keys = sorted({k for o in rivals for k in o})
        differing = [k for k in keys if len({_canonical(o.get(k)) for o in rivals}) > 1]
        details = ", ".join(f"{k}={option[k]}" for k in differing if k in option)
        result[text] = f"{option['name']} ({details})" if details else option["name"]
    return result


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def ordered(
    settings: AuditSettings, results: Sequence[TrialResult]
) -> list[TrialResult]:
    """Sort trials by data, defense, attack and seed, whatever order they came in."""
    return [
        result
        for scenario in scenarios(settings, results)
        for defense in scenario.defenses
        for name in (*scenario.attacks, *scenario.bounds)
        for result in scenario.trials.get((defense.label, name), [])
    ]


def scenarios(
    settings: AuditSettings, results: Sequence[TrialResult]
) -> list[Scenario]:
    """Group results by everything but seed, defense, attack and bound."""
    groups: dict[str, list[TrialResult]] = {}
    for result in sorted(results, key=lambda r: r.spec.id):
        groups.setdefault(_shared(result.spec), []).append(result)
    names = labels(r.spec.data for r in results)
    attack_names = labels(r.spec.attack for r in results)
    bound_names = labels(r.spec.bound for r in results)
    listed = settings.data if isinstance(settings.data, list) else [settings.data]
    sources = [as_options(source)["name"] for source in listed]
    made = [
        _scenario(settings, group, names, attack_names, bound_names)
        for group in groups.values()
    ]
    return sorted(
        made, key=lambda s: (_index(sources, s.spec.data["name"]), s.name, s.spec.id)
    )


def _shared(spec: TrialSpec) -> str:
    varied = {"seed": None, "defenses": None, "attack": None, "bound": None}
    return content_hash({**asdict(spec), **varied})


def _index(known: Sequence[Any], name: Any) -> int:
    return known.index(name) if name in known else len(known)


def _scenario(
    settings: AuditSettings,
    group: list[TrialResult],
    names: dict[str, str],
    attack_names: dict[str, str],
    bound_names: dict[str, str],
) -> Scenario:
    trials: dict[tuple[str, str], list[TrialResult]] = {}
    baselines: set[str] = set()
    defenses: dict[str, tuple[Defended, list[str]]] = {}
    attacks: dict[str, str] = {}
    bounds: set[str] = set()
    for result in sorted(group, key=lambda r: (r.spec.seed, r.spec.id)):
        defense = _defended(result.spec.defenses)
        stack = [options["name"] for options in result.spec.defenses]
        defenses.setdefault(defense.label, (defense, stack))
        if result.spec.attack is not None:
            name = attack_names[_canonical(result.spec.attack)]
            attacks[name] = result.spec.attack["name"]
            if result.baseline or _is_failed_baseline(result):
                baselines.add(name)
        else:
            name = bound_names[_canonical(result.spec.bound)]
            bounds.add(name)
        trials.setdefault((defense.label, name), []).append(result)
    listed = [as_options(attack)["name"] for attack in settings.attacks]
    stacks = [_names(entry) for entry in settings.defenses]
    first = [*listed, "prior-mean"]

    def in_order(entry: tuple[Defended, list[str]]) -> tuple[int, str, float, str]:
        place = -1 if entry[0].is_none else _index(stacks, entry[1])
        return (place, *_strength_order(entry[0]))

    return Scenario(
        name=names[_canonical(group[0].spec.data)],
        spec=group[0].spec,
        trials=trials,
        attacks=tuple(
            sorted(
                attacks, key=lambda a: (a in baselines, _index(first, attacks[a]), a)
            )
        ),
        baselines=frozenset(baselines),
        bounds=tuple(sorted(bounds)),
        defenses=tuple(d for d, _ in sorted(defenses.values(), key=in_order)),
        seeds=tuple(sorted({r.spec.seed for r in group})),
    )


def _defended(stack: tuple[Options, ...]) -> Defended:
    if not stack:
        return Defended("no defense", "", None)
    return Defended(
        defense_label(stack), defense_family(stack), defense_strength(stack)
    )


def _names(entry: list[Options | str] | Options | str) -> list[str]:
    """Return the names of one entry of ``AuditSettings.defenses``."""
    stack = entry if isinstance(entry, list) else [entry]
    return [as_options(defense)["name"] for defense in stack]


def _strength_order(defense: Defended) -> tuple[str, float, str]:
    """Sort weak to strong: an upper limit is the stronger, the smaller it is."""
    option, strength = defense.strength or ("", 0.0)
    signed = -strength if is_upper_limit(option) else strength
    return (defense.family, signed, defense.label)


def is_upper_limit(option: str) -> bool:
    """Say whether a strength limits something from above: a norm, a privacy budget."""
    return option.startswith("max") or option == "epsilon"


def _is_failed_baseline(result: TrialResult) -> bool:
    """Look up what a trial that did not end could not record."""
    if result.status == "done" or result.spec.attack is None:
        return False
    try:
        name = result.spec.attack["name"]
        return bool(find("attack", name, own="loaded").baseline)
    except UnknownName:  # an own module, which is not imported for a page
        return False
