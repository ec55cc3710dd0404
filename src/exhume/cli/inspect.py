"""``exhume inspect``: what is in a file, without loading it, and what is wrong in it.

Settings are checked as a run would check them; nothing runs.
"""

from __future__ import annotations

import json
import re
import sqlite3
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exhume.cli.console import columns, say
from exhume.errors import InvalidInput
from exhume.files import Header, kind_of, read_header, refuse_pickle, require_file
from exhume.registry import KINDS, entry

if TYPE_CHECKING:
    from exhume.observations.metadata import Metadata

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .safetensors, .npz or results.sqlite file, or .toml settings.",
        ),
    ],
) -> None:
    """Show names, shapes and types in a file, what it says about itself, what it lacks.

    Nothing is loaded and no code in the file is ever executed. Settings are checked:
    every name, option and range that is wrong is said, and no module of your own is
    imported.
    """
    if path.is_dir():
        path = _of_run(path)
    require_file(path)
    refuse_pickle(path)
    kind = kind_of(path)
    if kind == "safetensors":
        _safetensors(path)
    elif kind == "npz":
        _npz(path)
    elif kind == "sqlite":
        _results(path)
    elif kind == "text" and path.suffix == ".toml":
        _settings(path)
    else:
        msg = (
            f"{str(path)!r} is not a file that exhume knows; it reads .safetensors, "
            f".npz, results.sqlite of a run, and .toml settings"
        )
        raise InvalidInput(msg)


def _of_run(folder: Path) -> Path:
    path = folder / "results.sqlite"
    if not path.is_file():
        msg = f"{str(folder)!r} is a folder without results.sqlite; name a file"
        raise InvalidInput(msg)
    return path


def _safetensors(path: Path) -> None:
    from exhume.observations.metadata import ENTRY, parse

    header = read_header(path)
    record = parse(header.metadata, what=repr(path.name))
    count = sum(t.size for t in header.tensors.values())
    say(f"{path.name}: safetensors, {len(header.tensors)} tensors, {count:,} values")
    columns(
        (name, t.dtype, "×".join(map(str, t.shape)) or "scalar")
        for name, t in header.tensors.items()
    )
    others = {k: v for k, v in header.metadata.items() if k != ENTRY}
    if others:
        say("metadata:")
        columns((key, value) for key, value in others.items())
    if record is None:
        say(
            "It has no observation record, so `exhume attack` must be told --mode, "
            "--shape and, as far as they are known, --batch-size and --labels."
        )
    else:
        _observation(record, header)


def _observation(record: Metadata, header: Header) -> None:
    from exhume.problem.event import EventSpec

    event, task = EventSpec.from_record(record.task.event), record.task
    bounded = event.peak is not None
    low_high = f" in [{event.low:g}, {event.high:g}]" if bounded else ""
    defense = (
        "withheld"
        if record.defense is None
        else " → ".join(str(d.options) for d in record.defense) or "none"
    )
    say("observation:")
    columns(
        [
            ("kind", f"{record.kind} of the mean {task.loss} loss, {task.mode} mode"),
            ("example", f"{event.kind} {'×'.join(map(str, event.shape))}{low_high}"),
            ("normalisation", str(task.normalise) if task.normalise else "none"),
            ("batch size", str(record.batch_size or "withheld")),
            ("defense", defense),
            ("weights", _weights(record, header)),
            ("given", ", ".join(record.facts) or "nothing"),
            ("missing", ", ".join(record.unknown) or "nothing"),
            ("made by", ", ".join(f"{k} {v}" for k, v in record.made_by.items())),
        ]
    )


def _weights(record: Metadata, header: Header) -> str:
    inside = any(name.startswith("reference/") for name in header.tensors)
    hashed = record.reference_sha256
    return f"{'in the file' if inside else 'not in the file'}" + (
        f", SHA-256 {hashed[:12]}…" if hashed else ""
    )


def _npz(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(name, *_array(archive, name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        msg = f"{str(path)!r} is not a complete .npz file ({error}); write it again"
        raise InvalidInput(msg) from error
    objects = [name for name, dtype, _ in members if dtype == "object"]
    if objects:
        msg = (
            f"{', '.join(objects)} in {str(path)!r} holds Python objects, which are "
            f"pickled and can execute code; exhume never loads them, save plain numbers"
        )
        raise InvalidInput(msg)
    say(f"{path.name}: NumPy archive, {len(members)} arrays")
    columns((name.removesuffix(".npy"), *rest) for name, *rest in members)


def _array(archive: zipfile.ZipFile, member: str) -> tuple[str, str]:
    """Read type and shape of an array from its header."""
    from numpy.lib import format as npy

    with archive.open(member) as file:
        if npy.read_magic(file) == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(file)
        else:
            shape, _, dtype = npy.read_array_header_2_0(file)
    return str(dtype), "×".join(map(str, shape)) or "scalar"


def _results(path: Path) -> None:
    # Read-only: looking at results never changes them.
    address = f"{path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            query = "SELECT status, record FROM results ORDER BY rowid"
            trials = [(s, json.loads(r)["spec"]) for s, r in database.execute(query)]
    except (sqlite3.Error, ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{str(path)!r} holds no results of an audit, or is damaged ({error})"
        raise InvalidInput(msg) from error
    states = Counter(status for status, _ in trials)
    counts = ", ".join(f"{n} {status}" for status, n in sorted(states.items()))
    say(f"{path.name}: results of an audit, {len(trials)} trials ({counts or 'none'})")
    cells = Counter((_method(spec), _stack(spec), status) for status, spec in trials)
    columns((*cell, str(n)) for cell, n in sorted(cells.items()))


def _method(spec: dict[str, Any]) -> str:
    return str((spec["attack"] or spec["bound"])["name"])


def _stack(spec: dict[str, Any]) -> str:
    return " → ".join(d["name"] for d in spec["defenses"]) or "no defense"


def _settings(path: Path) -> None:
    from exhume.audit.settings import AuditSettings, Checked, expand
    from exhume.compare.run import prepared
    from exhume.compare.settings import CompareSettings
    from exhume.runs.settings import read_toml
    from exhume.theory.settings import TheorySettings

    given = read_toml(path)
    # The schema that knows most of its keys; an audit if two know as many.
    schemas = {
        "an audit": AuditSettings,
        "a comparison": CompareSettings,
        "a scaling experiment": TheorySettings,
    }
    known = {what: {f.name for f in fields(cls)} for what, cls in schemas.items()}
    what = max(known, key=lambda what: len(known[what] & given.keys()))
    settings = schemas[what].read(path)
    say(f"{path.name}: settings of {what}, titled {settings.title!r}")
    columns((key, str(value)) for key, value in given.items())
    checked, own = Checked(recorded=()), list(_own_members(given))
    for kind, name in own:
        with checked.gathered():
            entry(kind, name)
    with checked.gathered():
        if isinstance(settings, AuditSettings):
            expand(settings, recorded=())
        elif isinstance(settings, CompareSettings):
            prepared(settings, recorded=())
    checked.report()
    if own:
        names = ", ".join(dict.fromkeys(name for _, name in own))
        say(f"Found, and not imported for this: {names}.")
    say("Every name is known, and every option of a registered one fits.")


def _own_members(given: Any, kind: str = "") -> Iterator[tuple[str, str]]:
    """List kind and name of the members in settings that are modules of one's own."""
    if isinstance(given, str) and kind and re.search("[.:]", given):
        yield kind, given
    if isinstance(given, dict) and kind:
        yield from _own_members(given.get("name"), kind)
    elif isinstance(given, dict):
        for key, value in given.items():
            named = key if key in KINDS else key.removesuffix("s")
            if named in KINDS:
                yield from _own_members(value, named)
    if isinstance(given, list):
        for item in given:
            yield from _own_members(item, kind)
