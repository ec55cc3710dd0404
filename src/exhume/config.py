"""From plain data to objects: the dataclass is the schema, checked by pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from exhume.errors import ExhumeError, InvalidInput
from exhume.registry import find

__all__ = ["build", "describe"]


def build(kind: str, options: str | Mapping[str, Any]) -> Any:
    """Make a registered object from its name and options.

    Args:
        kind: a key of ``registry.KINDS``.
        options: ``{"name": "gaussian-noise", "std": 0.01}``, or just the name.

    Raises:
        UnknownName: no object of this kind has the name.
        InvalidInput: an option is unknown, missing, mistyped or out of range; every
            problem is listed.
    """
    given = {"name": options} if isinstance(options, str) else dict(options)
    if not isinstance(given.get("name"), str):
        msg = f"a {kind} is given by its name and options, got {given!r}"
        raise InvalidInput(msg)
    cls = find(kind, given.pop("name"))
    return validate(cls, given, what=f"{kind} {_registered_name(cls)!r}")


def validate(cls: type[Any], given: Mapping[str, Any], *, what: str) -> Any:
    """Make a dataclass from plain data, collecting every problem in one message."""
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in fields(cls) if f.init]
    unknown = [name for name in given if name not in known]
    if unknown:
        options = ", ".join(known) or "none"
        msg = f"{what} has no option {', '.join(map(repr, unknown))}; it has: {options}"
        raise InvalidInput(msg)
    try:
        return TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}"
            + ("" if e["type"] == "missing" else f" (got {e['input']!r})")
            for e in error.errors()
        )
        msg = f"{what}: {problems}"
        raise InvalidInput(msg) from error
    except ExhumeError as error:
        msg = f"{what}: {error}"
        raise type(error)(msg) from error


def _registered_name(cls: type[Any]) -> str:
    return cls.__module__.rsplit(".", 1)[-1].replace("_", "-")


def describe(value: Any) -> dict[str, Any]:
    """Undo :func:`build`: the name and options of a registered object."""
    return {"name": _registered_name(type(value)), **asdict(value)}
