"""The BibTeX of exactly the methods that an audit used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from exhume.audit.records import TrialResult
from exhume.errors import UnknownName
from exhume.registry import find

__all__ = ["citations", "methods"]

_START = re.compile(r"^\s*(?=@\w+\s*\{)", re.MULTILINE)
_KEY = re.compile(r"@\w+\s*\{\s*([^,\s]+)\s*,")


def methods(results: Sequence[TrialResult]) -> list[tuple[str, str]]:
    """List the (kind, name) of every registered object that occurs, sorted."""
    found: set[tuple[str, str]] = set()
    for result in results:
        spec = result.spec
        single = {
            "attack": spec.attack,
            "bound": spec.bound,
            "data": spec.data,
            "model": spec.model,
            "observation": spec.observation,
            "prior": spec.prior,
        }
        found |= {(kind, o["name"]) for kind, o in single.items() if o is not None}
        found |= {("defense", defense["name"]) for defense in spec.defenses}
        found |= {("metric", metric) for metric in result.scores}
    return sorted(found)


def citations(used: Iterable[tuple[str, str]]) -> str:
    """Join the entries of the methods, each key once, sorted by key."""
    entries: dict[str, str] = {}
    for kind, name in used:
        try:
            text = getattr(find(kind, name), "bibtex", "")
        except UnknownName:  # a method of somebody else's, stored with the run
            continue
        for entry in _START.split(text):
            if found := _KEY.match(entry):
                entries.setdefault(found[1], entry.strip())
    return "\n\n".join(entries[key] for key in sorted(entries))
