"""From plain data to objects: the dataclass is the schema, checked by pydantic."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, field, fields
from typing import Any

from exhume.errors import ExhumeError, InvalidInput, shown
from exhume.registry import OwnModules, find, own_modules, registered_name

__all__ = ["build", "chosen", "default_options", "describe", "later"]


def later(default: Any) -> Any:
    """Return a field that a class got after specs with it had been stored.

    It is left out of records at its default, so that those specs keep their ids.
    """
    return field(default=default, metadata={"later": True})


def chosen(kind: str, *, formerly: str = "") -> Mapping[str, Any]:
    """Return the metadata of a field that names another registered object.

    Its value is a name, or a name with options. Specs that were written before such an
    option existed keep their ids: it is recorded under its former name, or, if it has
    none, left out of records at its default.

    Args:
        kind: a key of ``registry.KINDS``.
        formerly: the name under which it is recorded, and which is read as well.
    """
    return {"kind": kind, "formerly": formerly}


def build(
    kind: str, options: str | Mapping[str, Any], *, own: OwnModules = "import"
) -> Any:
    """Make a registered object from its name and options.

    Args:
        kind: a key of ``registry.KINDS``.
        options: ``{"name": "gaussian-noise", "std": 0.01}``, or just the name.
        own: what is done for a dotted name, here and in the options.

    Raises:
        UnknownName: no object of this kind has the name.
        NotImported: a dotted name, and ``own`` forbids to import it.
        InvalidInput: an option is unknown, missing, mistyped or out of range; every
            problem is listed.
    """
    given = {"name": options} if isinstance(options, str) else options
    if not (isinstance(given, Mapping) and isinstance(given.get("name"), str)):
        msg = f"a {kind} is given by its name and options, got {shown(given)}"
        raise InvalidInput(msg)
    rest = dict(given)
    with own_modules(own):
        cls = find(kind, rest.pop("name"))
        return validate(cls, rest, what=f"{kind} {registered_name(cls)!r}")


def validate(cls: type[Any], given: Mapping[str, Any], *, what: str) -> Any:
    """Make a dataclass from plain data, collecting every problem in one message."""
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in fields(cls) if f.init]
    given = _renamed(cls, given, what)
    unknown = [name for name in given if name not in known]
    if unknown:
        msg = f"{what} {_no_option(unknown, known)}"
        raise InvalidInput(msg)
    try:
        made = TypeAdapter(cls).validate_python(given)
        for f in fields(cls):
            choice = getattr(made, f.name)
            if "kind" in f.metadata and isinstance(choice, str | Mapping):
                build(f.metadata["kind"], choice)
        return made
    except ValidationError as error:
        msg = f"{what}: {'; '.join(map(_problem, error.errors()))}"
        raise InvalidInput(msg) from error
    except ExhumeError as error:
        msg = f"{what}: {error}"
        raise type(error)(msg) from error
    except (OverflowError, RecursionError) as error:
        msg = f"{what}: a value is too large or nested too deeply ({error})"
        raise InvalidInput(msg) from error


def _renamed(cls: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return options with former names replaced by those of today."""
    found = dict(given)
    for f in fields(cls):
        former = f.metadata.get("formerly")
        if not former or former not in found:
            continue
        if f.name in found:
            msg = f"{what} got {f.name} and {former}, its former name; give {f.name}"
            raise InvalidInput(msg)
        found[f.name] = found.pop(former)
    return found


def _no_option(unknown: list[str], known: list[str]) -> str:
    near = [difflib.get_close_matches(name, known, n=1) for name in unknown]
    hints = [repr(match) for found in near for match in found]
    hint = f"did you mean {' and '.join(hints)}? " if hints else ""
    options = ", ".join(known) or "none"
    return f"has no option {', '.join(map(shown, unknown))}; {hint}it has: {options}"


def _problem(error: Mapping[str, Any]) -> str:
    """Say in words what pydantic found."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # a sentence of ours, which says what it got
        return (
            f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
        )
    got = "" if error["type"] == "missing" else f" (got {shown(error['input'])})"
    return f"{where or 'value'}: {error['msg']}{got}"


def describe(value: Any) -> dict[str, Any]:
    """Undo :func:`build`: the name and complete options of a registered object.

    Raises:
        InvalidInput: an option is an object without a name.
    """
    options = {
        f.name: _complete(f, getattr(value, f.name))
        for f in fields(value)
        if "kind" in f.metadata
    }
    options = asdict(value) | options
    record: dict[str, Any] = {"name": registered_name(type(value))}
    for f in fields(value):
        option, former = options[f.name], f.metadata.get("formerly", "")
        usual = _complete(f, f.default) if "kind" in f.metadata else f.default
        came_later = "later" in f.metadata or "kind" in f.metadata
        if former or not came_later or option != usual:
            record[former or f.name] = option
    return record


def default_options(cls: type[Any]) -> dict[str, Any]:
    """Return the defaults of a registered class, by the names that records have."""
    return {
        f.metadata.get("formerly") or f.name: f.default
        for f in fields(cls)
        if f.default is not MISSING
    }


def _complete(f: Field[Any], choice: Any) -> Any:
    """Return a choice with all its options; by the name alone if it has none."""
    if choice is None:
        return None
    if not isinstance(choice, str | Mapping):
        msg = (
            f"{f.name} is an object of the class {type(choice).__name__}, which cannot "
            f"be written down; name a registered {f.metadata['kind']}, or a module of "
            f"your own"
        )
        raise InvalidInput(msg)
    name = choice if isinstance(choice, str) else choice["name"]
    record = {**describe(build(f.metadata["kind"], choice)), "name": name}
    return record if len(record) > 1 else name
