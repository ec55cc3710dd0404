"""``exhume list``: every name that can be chosen, read from the files, not imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

import typer

import exhume
from exhume.cli.console import columns, say
from exhume.errors import UnknownName
from exhume.problem.presets import PRESETS
from exhume.registry import Entry, did_you_mean, entries, entry, member_node

__all__ = ["LISTED", "THREATS", "Option", "list_", "read_class", "summaries"]

#: what the user writes → kind in the registry
LISTED = {
    "attacks": "attack",
    "bounds": "bound",
    "data": "data",
    "defenses": "defense",
    "events": "event",
    "executors": "executor",
    "metrics": "metric",
    "models": "model",
    "observations": "observation",
    "priors": "prior",
    "relaxations": "relaxation",
}
THREATS = "threat-models"
AUDITS = "audits"

#: name, type and default of an option, as the code writes them
Option = tuple[str, str, str]


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join([*LISTED, THREATS, AUDITS])}; all if omitted."
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Argument(help="Show the options of this one; a module of your own too."),
    ] = "",
) -> None:
    """List what can be chosen by name, or the options of one of them.

    For example: exhume list attacks · exhume list attacks gauss-newton
    """
    kinds = [*LISTED, THREATS, AUDITS] if not kind else [_known(kind)]
    for shown in kinds:
        if name:
            _describe(shown, name)
            return
        found = summaries(shown)
        if len(kinds) > 1:
            say(shown, style="bold")
        columns(found, indent="  " if len(kinds) > 1 else "")


def _known(kind: str) -> str:
    singular = {singular: plural for plural, singular in LISTED.items()}
    others = {"threat-model": THREATS, "audit": AUDITS}
    plural = singular.get(kind, others.get(kind, kind))
    known = [*LISTED, THREATS, AUDITS]
    if plural not in known:
        raise UnknownName(did_you_mean("kind", kind, known))
    return plural


def summaries(kind: str) -> list[tuple[str, str]]:
    """List names with one line each, of a key of ``LISTED`` or the threat models."""
    if kind == THREATS:
        return [
            (n, p.description.split(". ")[0].rstrip(".") + ".")
            for n, p in PRESETS.items()
        ]
    if kind == AUDITS:
        return _audits()
    return [(entry.name, entry.summary) for entry in entries(LISTED[kind])]


def _audits() -> list[tuple[str, str]]:
    """List the audits that come with exhume, by the first comment of their files."""
    return [
        (path.stem, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
        for path in sorted(_audit_file("").parent.glob("*.toml"))
    ]


def _audit_file(name: str) -> Path:
    return Path(exhume.__file__).parent / "audit" / "examples" / f"{name}.toml"


def _describe(kind: str, name: str) -> None:
    if kind in LISTED:
        _describe_member(entry(LISTED[kind], name))
        return
    known = [n for n, _ in summaries(kind)]
    if name not in known:
        raise UnknownName(did_you_mean(kind.rstrip("s"), name, known))
    if kind == THREATS:
        preset = PRESETS[name]
        say(preset.description)
        say(f"Letter in Carletti et al. (2025): {preset.letter}")
        say(f"Knows: {', '.join(f.lower().replace('_', ' ') for f in preset.facts)}")
        return
    say(_audit_file(name).read_text(encoding="utf-8").rstrip())


def _describe_member(member: Entry) -> None:
    say(member.summary, style="bold")
    if ":" in member.name:  # a function without options
        return
    document, options = read_class(member)
    say(document)
    if options:
        say("\nOptions:")
        columns(options)


def read_class(member: Entry) -> tuple[str, list[Option]]:
    """Read docstring and options of the registered class, without importing it."""
    tree = ast.parse(Path(member.path).read_text(encoding="utf-8"))
    node = member_node(member.kind, member.path)
    assert node is not None  # an entry is a file that has one
    fields = [
        (
            ast.unparse(item.target),
            _spelled(item.annotation, tree),
            f"= {_default(item.value)}" if item.value else "(required)",
        )
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and not ast.unparse(item.annotation).startswith(("ClassVar", "Final"))
    ]
    return ast.get_docstring(node) or "", fields


def _default(value: ast.expr) -> str:
    """Write a default, which ``field(default=…)`` or ``later(…)`` may hold."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        own = {k.arg: k.value for k in value.keywords}
        value = own.get("default", value)
    elif isinstance(value, ast.Call) and ast.unparse(value.func) == "later":
        value = value.args[0]
    return ast.unparse(value)


def _spelled(annotation: ast.expr, tree: ast.Module) -> str:
    """Write a type; a name of ours, like ``StartKind``, as what it stands for."""
    if not isinstance(annotation, ast.Name):
        return ast.unparse(annotation)
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == annotation.id
            for target in node.targets
        ):
            return ast.unparse(node.value)
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("exhume.")
            and any(alias.name == annotation.id for alias in node.names)
        ):
            return _spelled(annotation, _module(node.module or ""))
    return annotation.id


def _module(name: str) -> ast.Module:
    """Parse one of our own modules without importing it."""
    source = Path(exhume.__file__).parent.joinpath(*name.split(".")[1:])
    return ast.parse(source.with_suffix(".py").read_text(encoding="utf-8"))
