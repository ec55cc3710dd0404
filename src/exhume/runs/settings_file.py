"""Settings as the TOML that asks for the same run again."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields
from typing import Any

__all__ = ["to_toml", "toml_value"]


def to_toml(settings: Any, *, complete: bool = False) -> str:
    """Write every setting that is not the default, one per line.

    Args:
        settings: a dataclass whose fields have defaults.
        complete: write those that are the default too.
    """
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if complete or value != _default(field):
            lines.append(f"{field.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def _default(field: Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is MISSING else made()


def toml_value(value: Any, depth: int = 0) -> str:
    """Write a plain value; a long list at depth 0 takes one line per item."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        pairs = (f"{_key(k)} = {toml_value(v, depth + 1)}" for k, v in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        items = [toml_value(item, depth + 1) for item in value]
        if depth == 0 and len(items) > 1:
            return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
        return f"[{', '.join(items)}]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML also escapes DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value is None:
        return '"none"'
    return repr(value)


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "").isalnum() and key.isascii()
    return key if bare else json.dumps(key)
