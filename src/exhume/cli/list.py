"""``exhume list``: every name that can be chosen, read from the files, not imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.console import columns, say
from exhume.errors import UnknownName
from exhume.problem.presets import PRESETS
from exhume.registry import KINDS, Entry, did_you_mean, entries

__all__ = ["list_"]

#: what the user writes → kind in the registry
_PLURALS = {
    "attacks": "attack",
    "bounds": "bound",
    "data": "data",
    "defenses": "defense",
    "metrics": "metric",
    "models": "model",
    "observations": "observation",
    "priors": "prior",
}
_THREATS = "threat-models"


def list_(
    kind: Annotated[
        str, typer.Argument(help=f"{', '.join([*_PLURALS, _THREATS])}; all if omitted.")
    ] = "",
    name: Annotated[str, typer.Argument(help="Show the options of this one.")] = "",
) -> None:
    """List what can be chosen by name, or the options of one of them.

    For example: exhume list attacks · exhume list attacks gauss-newton
    """
    kinds = [*_PLURALS, _THREATS] if not kind else [_known(kind)]
    for shown in kinds:
        found = _summaries(shown)
        if name:
            _describe(shown, name, [n for n, _ in found])
            return
        if len(kinds) > 1:
            say(shown, style="bold")
        columns(found, indent="  " if len(kinds) > 1 else "")


def _known(kind: str) -> str:
    singular = {singular: plural for plural, singular in _PLURALS.items()}
    plural = singular.get(kind, {"threat-model": _THREATS}.get(kind, kind))
    if plural not in (*_PLURALS, _THREATS):
        raise UnknownName(did_you_mean("kind", kind, [*_PLURALS, _THREATS]))
    return plural


def _summaries(kind: str) -> list[tuple[str, str]]:
    if kind == _THREATS:
        return [
            (n, p.description.split(". ")[0].rstrip(".") + ".")
            for n, p in PRESETS.items()
        ]
    return [(entry.name, entry.summary) for entry in entries(_PLURALS[kind])]


def _describe(kind: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UnknownName(did_you_mean(kind.rstrip("s"), name, known))
    if kind == _THREATS:
        preset = PRESETS[name]
        say(preset.description)
        say(f"Letter in Carletti et al. (2025): {preset.letter}")
        say(f"Knows: {', '.join(f.lower().replace('_', ' ') for f in preset.facts)}")
        return
    entry = next(e for e in entries(_PLURALS[kind]) if e.name == name)
    say(entry.summary, style="bold")
    document, options = _read_class(entry)
    say(document)
    if options:
        say("\nOptions:")
        columns(options)


def _read_class(entry: Entry) -> tuple[str, list[tuple[str, str, str]]]:
    """Read docstring and fields (name, type, default) of the registered class."""
    tree = ast.parse(Path(entry.path).read_text(encoding="utf-8"))
    base = KINDS[entry.kind][2]
    node = next(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(b).split(".")[-1].split("[")[0] == base for b in node.bases)
    )
    fields = [
        (
            ast.unparse(item.target),
            ast.unparse(item.annotation),
            f"= {ast.unparse(item.value)}" if item.value else "(required)",
        )
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and not ast.unparse(item.annotation).startswith(("ClassVar", "Final"))
    ]
    return ast.get_docstring(node) or "", fields
