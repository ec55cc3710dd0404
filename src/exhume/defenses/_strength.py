"""The strength of a noise: its standard deviation, as every noise takes it."""

from __future__ import annotations

import math

from exhume.errors import InvalidInput

__all__ = ["check_std"]


def check_std(std: float) -> None:
    """Raise unless a standard deviation is finite and not negative.

    Raises:
        InvalidInput: names its value and what was expected.
    """
    if not (math.isfinite(std) and std >= 0):
        msg = f"std is {std}; expected a finite number of at least 0"
        raise InvalidInput(msg)
