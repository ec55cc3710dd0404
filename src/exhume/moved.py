"""Doors: modules that have moved can still be imported by their old name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["door"]


def door(old: str, new: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that has moved.

    Names are looked up where they are now, with a ``DeprecationWarning``.

    Args:
        old: dotted name that others may still import.
        new: dotted name of the module that has the names.
    """

    def look(name: str) -> Any:
        # Private names are asked for by tools that merely inspect a module.
        if name.startswith("_"):
            msg = f"module {old!r} has no attribute {name!r}"
            raise AttributeError(msg)
        found = getattr(importlib.import_module(new), name)
        what = f"{old} has moved to {new}; import {name} from there"
        warnings.warn(what, DeprecationWarning, stacklevel=2)
        return found

    return look
