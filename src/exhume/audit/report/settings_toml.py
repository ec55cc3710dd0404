"""The settings of an audit as the TOML that asks for the same audit again."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from exhume.audit.settings import AuditSettings

__all__ = ["to_toml"]


def to_toml(settings: AuditSettings) -> str:
    """Write every setting that is not the default, one per line."""
    default = AuditSettings()
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != getattr(default, field.name):
            lines.append(f"{field.name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any, depth: int = 0) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        pairs = (f"{_key(k)} = {_value(v, depth + 1)}" for k, v in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        items = [_value(item, depth + 1) for item in value]
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
