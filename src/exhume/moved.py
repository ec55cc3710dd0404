"""Doors: modules that have moved can still be imported by their old name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["door"]


def door(old: str, *new: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that has moved.

    Names are looked up where they are now, with a ``DeprecationWarning``.

    Args:
        old: dotted name that others may still import.
        new: dotted names of the modules that have the names, asked in this order.
    """

    def look(name: str) -> Any:
        # Private names are asked for by tools that merely inspect a module.
        if name.startswith("_"):
            msg = f"module {old!r} has no attribute {name!r}"
            raise AttributeError(msg)
        for place in new:
            module = importlib.import_module(place)
            if hasattr(module, name):
                what = f"{old} has moved to {place}; import {name} from there"
                warnings.warn(what, DeprecationWarning, stacklevel=2)
                return getattr(module, name)
        msg = f"module {old!r} has no attribute {name!r}, nor has {' or '.join(new)}"
        raise AttributeError(msg)

    return look
