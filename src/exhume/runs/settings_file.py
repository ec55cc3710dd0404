"""Settings as TOML: read from a file, and written so that it asks for the same run."""

from __future__ import annotations

import json
import tomllib
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from exhume.errors import InvalidInput

__all__ = ["parse_toml", "read_toml", "to_toml", "toml_value"]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read settings from a TOML file, with "none" as None.

    Raises:
        InvalidInput: the file is missing, cannot be read, or is not TOML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        msg = f"there is no file {path}; give the path of a TOML file of settings"
        raise InvalidInput(msg) from error
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as text ({error}); give a TOML file"
        raise InvalidInput(msg) from error
    return parse_toml(text, what=str(path))


def parse_toml(text: str, *, what: str) -> dict[str, Any]:
    """Read settings from TOML, with "none" as None.

    Raises:
        InvalidInput: it is not TOML.
    """
    try:
        return _with_null(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        msg = f"{what} is not valid TOML: {error}"
        raise InvalidInput(msg) from error


def _with_null(value: Any) -> Any:
    """Replace the string "none" by None, which TOML cannot write."""
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_null(item) for item in value]
    return None if value == "none" else value


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
