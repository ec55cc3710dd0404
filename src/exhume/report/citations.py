"""The BibTeX of exactly the methods that an audit used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from exhume.errors import UnknownName
from exhume.registry import find
from exhume.runs.records import Options, TrialResult

__all__ = ["citations", "methods"]

_START = re.compile(r"^\s*(?=@\w+\s*\{)", re.MULTILINE)
_KEY = re.compile(r"@\w+\s*\{\s*([^,\s]+)\s*,")


#: kind of a registered object, and the object as plain data
Method = tuple[str, Options]


def methods(results: Sequence[TrialResult]) -> list[Method]:
    """List every registered object that occurs, each once, sorted."""
    found: list[Method] = []
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
        found += [(kind, o) for kind, o in single.items() if o is not None]
        found += [("defense", defense) for defense in spec.defenses]
        found += [("metric", {"name": metric}) for metric in result.scores]
    unique = {json.dumps(method, sort_keys=True): method for method in found}
    return [unique[text] for text in sorted(unique)]


def citations(used: Iterable[Method]) -> str:
    """Join the entries of the methods, each key once, sorted by key."""
    entries: dict[str, str] = {}
    for kind, options in used:
        for entry in _START.split(_bibtex(kind, options)):
            if found := _KEY.match(entry):
                entries.setdefault(found[1], entry.strip())
    return "\n\n".join(entries[key] for key in sorted(entries))


def _bibtex(kind: str, options: Options) -> str:
    """Return the entries of a method and of the variant that its options choose."""
    try:
        cls = find(kind, options["name"])
    except UnknownName:  # a method of somebody else's, stored with the run
        return ""
    variants = getattr(cls, "variant_bibtex", {})
    chosen = [
        variants.get(option, {}).get(value, "")
        for option, value in options.items()
        if option in variants
    ]
    return "\n".join([getattr(cls, "bibtex", ""), *chosen])
