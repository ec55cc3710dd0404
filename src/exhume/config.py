"""From plain data to objects: the dataclass is the schema, checked by pydantic."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from exhume.errors import ExhumeError, InvalidInput, shown
from exhume.registry import OwnModules, find, own_modules, registered_name

__all__ = ["build", "describe"]


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
    with own_modules(own):
        cls = find(kind, given["name"])
        rest = {option: value for option, value in given.items() if option != "name"}
        return validate(cls, rest, what=f"{kind} {registered_name(cls)!r}")


def validate(cls: type[Any], given: Mapping[str, Any], *, what: str) -> Any:
    """Make a dataclass from plain data, collecting every problem in one message."""
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in fields(cls) if f.init]
    unknown = [name for name in given if name not in known]
    if unknown:
        msg = f"{what} {_no_option(unknown, known)}"
        raise InvalidInput(msg)
    try:
        return TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as error:
        msg = f"{what}: {'; '.join(map(_problem, error.errors()))}"
        raise InvalidInput(msg) from error
    except ExhumeError as error:
        msg = f"{what}: {error}"
        raise type(error)(msg) from error
    except (OverflowError, RecursionError) as error:
        msg = f"{what}: a value is too large or nested too deeply ({error})"
        raise InvalidInput(msg) from error


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
    """Undo :func:`build`: the name and options of a registered object."""
    return {"name": registered_name(type(value)), **asdict(value)}
