"""One HTML page that works offline, and the BibTeX of what it is about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exhume.errors import NotImported, UnknownName
from exhume.registry import find
from exhume.runs.records import Options, TrialResult

__all__ = ["citations", "methods", "render"]


def render(package: str, template: str, view: Mapping[str, Any]) -> str:
    """Render a page without any outside reference.

    Args:
        package: whose folder ``templates/`` holds the template; it extends
            ``page.html.j2`` and takes small parts from ``parts.html.j2``, both here.
        template: name of the file.
        view: everything the page shows; a name that is missing is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(package), PackageLoader("exhume.report")]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(view)


# --- citations ------------------------------------------------------------------------

_START = re.compile(r"^\s*(?=@\w+\s*\{)", re.MULTILINE)
_KEY = re.compile(r"@\w+\s*\{\s*([^,\s]+)\s*,")
_NOT_IMPORTED = "% {} is an own module, which is not imported for a page"


#: kind of a registered object, and the object as plain data
Method = tuple[str, Options]


def methods(results: Sequence[TrialResult]) -> list[Method]:
    """List every registered object that occurs, each once, sorted."""
    unique: dict[str, Method] = {}
    for result in results:
        names = [key.partition("(")[0] for key in result.scores]
        scored: list[Method] = [("metric", {"name": name}) for name in names]
        for method in result.spec.objects() + scored:
            unique[json.dumps(method, sort_keys=True)] = method
    return [method for _, method in sorted(unique.items())]


def citations(used: Iterable[Method]) -> str:
    """Join the entries of the methods, each key once, sorted by key.

    A module of the user's own is never imported for a page: one that this process has
    not imported is named in a comment instead.
    """
    entries: dict[str, str] = {}
    comments: list[str] = []
    for kind, options in used:
        try:
            cls = find(kind, options["name"], own="loaded")
        except NotImported:
            comments.append(_NOT_IMPORTED.format(options["name"]))
            continue
        except UnknownName:  # of another version of exhume
            continue
        # The entries of the method, and of the variant that its options choose.
        variants = getattr(cls, "variant_bibtex", {})
        chosen = [variants[o].get(v, "") for o, v in options.items() if o in variants]
        bibtex = "\n".join([getattr(cls, "bibtex", ""), *chosen])
        for entry in _START.split(bibtex):
            if found := _KEY.match(entry):
                entries.setdefault(found[1], entry.strip())
    listed = [entries[key] for key in sorted(entries)]
    return "\n\n".join([*listed, *dict.fromkeys(comments)])
