"""From lists and dictionaries of JSON back to the types that a dataclass declares."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from exhume.errors import InvalidInput

__all__ = ["restore"]

T = TypeVar("T")


def restore(cls: type[T], record: dict[str, Any]) -> T:
    """Make a dataclass of what was stored of its fields.

    Lists become the tuples that they were, and dictionaries the dataclasses, as the
    annotations say. Fields that this version does not know are left out, and those that
    the version which wrote the record did not know have their defaults.

    Args:
        cls: a dataclass whose annotations can be evaluated when the program runs.
        record: values by field.

    Raises:
        InvalidInput: a field without a default is missing.
    """
    readers = _readers(cls)
    absent = [
        f.name
        for f in fields(cls)  # type: ignore[arg-type]
        if f.default is MISSING
        and f.default_factory is MISSING
        and f.name not in record
    ]
    if absent:
        msg = (
            f"a stored {cls.__name__} has no {' and no '.join(absent)}; use the "
            f"version of exhume that wrote it"
        )
        raise InvalidInput(msg)
    return cls(
        **{
            name: value if (reader := readers[name]) is None else reader(value)
            for name, value in record.items()
            if name in readers
        }
    )


Reader = Callable[[Any], Any]


@lru_cache
def _readers(cls: type[Any]) -> dict[str, Reader | None]:
    hints = get_type_hints(cls)
    return {f.name: _reader(hints[f.name]) for f in fields(cls)}


def _reader(kind: Any) -> Reader | None:
    """Return what makes a value of a type; None if JSON holds it as it is."""
    if is_dataclass(kind) and isinstance(kind, type):
        return lambda value: restore(kind, value)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _optional(inner)
    if origin is tuple:
        return _tuple(inner)
    if origin is list:
        return _of_each(_reader(inner[0]))
    if origin is dict:
        return _of_values(_reader(inner[1]))
    return None


def _optional(inner: tuple[Any, ...]) -> Reader | None:
    """Read X | None; what may be of several types is taken as it is."""
    kinds = [kind for kind in inner if kind is not type(None)]
    reader = _reader(kinds[0]) if len(kinds) == 1 else None
    if reader is None:
        return None
    return lambda value: None if value is None else reader(value)


def _tuple(inner: tuple[Any, ...]) -> Reader:
    if inner[1:] == (...,):
        each = _of_each(_reader(inner[0]))
        return tuple if each is None else lambda value: tuple(each(value))
    readers = [_reader(kind) for kind in inner]
    if not any(readers):
        return tuple
    return lambda value: tuple(
        item if reader is None else reader(item)
        for reader, item in zip(readers, value, strict=True)
    )


def _of_each(reader: Reader | None) -> Reader | None:
    return None if reader is None else lambda value: list(map(reader, value))


def _of_values(reader: Reader | None) -> Reader | None:
    if reader is None:
        return None
    return lambda value: dict(zip(value, map(reader, value.values()), strict=True))
