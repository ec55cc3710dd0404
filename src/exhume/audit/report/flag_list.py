"""The flags of an audit by kind: each sentence once, with where it was raised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from exhume.audit.report.grouping import Scenario
from exhume.audit.report.verdict import Flags

__all__ = ["SEVERITIES", "FlagGroup", "flag_groups"]

#: the gravest first
SEVERITIES = ("alarm", "warning", "note")
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
            kinds.items(), key=lambda item: (SEVERITIES.index(item[0][0]), item[0][1])
        )
    ]


def _told(places: _Places) -> tuple[str, ...]:
    """Write where a flag was raised: attack: defense (×trials), defense."""
    return tuple(
        f"{name}: "
        + "; ".join(d if n == 1 else f"{d} (×{n})" for d, n in counts.items())
        for name, counts in places.items()
    )
