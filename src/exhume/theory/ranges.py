"""Ranges of the options of scaling experiments, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from exhume.errors import InvalidInput

__all__ = ["check_numbers", "check_published", "check_sweep"]

#: option → smallest value it may have
_LEAST = {
    "width": 1,
    "dimension": 1,
    "batch_size": 1,
    "count": 1,
    "noise": 0.0,
    "clip": 0.0,
    "ratio": 0.0,
    "rate": 0.0,
    "bias": -math.inf,
}

#: quantity that only some rows have → these rows
_OWN = {
    "K": ("local-aggregation", "secure-aggregation"),
    "C": ("clipping", "dp-sgd"),
    "rho": ("dropout", "pruning"),
}


def check_numbers(options: Any) -> None:
    """Raise unless every option that is given is finite and not below its least value.

    Raises:
        InvalidInput: one is out of range.
    """
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is None:
            continue
        if not (least <= value < math.inf and value > -math.inf):
            span = "finite" if least < 0 else f"at least {least:g}, and finite"
            msg = f"{name} is {value}; it must be {span}"
            raise InvalidInput(msg)
        if name == "ratio" and value >= 1:
            msg = f"ratio is {value}; it must be below 1"
            raise InvalidInput(msg)


def check_sweep(row: str, sweep: str) -> None:
    """Raise if a row of the table does not depend on a quantity.

    Raises:
        InvalidInput: it does not, and the error would be the same everywhere.
    """
    rows = _OWN.get(sweep)
    if rows is not None and row not in rows:
        msg = f"{row} has no {sweep}; sweep it under {' or '.join(rows)}"
        raise InvalidInput(msg)


def check_published(published: Sequence[Sequence[float]]) -> None:
    """Raise unless every published point is a pair of positive, finite numbers.

    Raises:
        InvalidInput: one is not.
    """
    for point in published:
        if len(point) != 2 or not all(0 < value < math.inf for value in point):
            msg = (
                f"published has {list(point)}; expected [quantity, RMS error], both "
                f"above 0"
            )
            raise InvalidInput(msg)
