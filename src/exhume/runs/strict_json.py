"""Strict JSON, which has neither ∞ nor NaN: here is the one way to write them.

In what others read (the JSON beside a report) they are the words ``"Infinity"``,
``"-Infinity"`` and ``"NaN"``. In what has to come back as it was (a store) they stand
in an object, ``{"$float": "Infinity"}``, so that no text is taken for a number.
"""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["dump_exact", "dumps", "load_exact"]

_MARK = "$float"


def dumps(value: Any) -> str:
    """Write indented JSON for others to read; tuples are lists, keys are text."""
    plain = _encode(value, exact=False)
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def dump_exact(value: Any) -> str:
    """Write compact JSON that :func:`load_exact` gives back, but for tuples."""
    return json.dumps(_encode(value, exact=True), allow_nan=False)


def load_exact(text: str) -> Any:
    """Read what :func:`dump_exact` wrote.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(text, object_hook=_decode)


def _encode(value: Any, *, exact: bool) -> Any:
    if isinstance(value, dict):
        return {str(key): _encode(item, exact=exact) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, exact=exact) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        word = str(float(value)).replace("nan", "NaN").replace("inf", "Infinity")
        return {_MARK: word} if exact else word
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value[_MARK]) if value.keys() == {_MARK} else value
