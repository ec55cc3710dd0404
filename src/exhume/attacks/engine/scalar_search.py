"""Minimise over one number: a grid, then golden sections around its best point."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["minimise_scalar"]

_GOLDEN = (math.sqrt(5) - 1) / 2


def minimise_scalar(
    function: Callable[[float], float],
    low: float,
    high: float,
    *,
    points: int = 11,
    sections: int = 16,
) -> float:
    """Return where a function of one number is least, as nearly as a grid can tell.

    Deterministic, so that the same function gives the same bits. Values that are not
    finite count as infinite. Without a finite value the middle is returned.

    Args:
        function: of the number.
        low: lower end of the interval.
        high: upper end, > low.
        points: of the grid, both ends included.
        sections: golden sections of the two cells beside the best point.

    References:
        Kiefer, Sequential minimax search for a maximum, 1953.
    """

    def value(at: float) -> float:
        found = function(at)
        return found if math.isfinite(found) else math.inf

    step = (high - low) / (points - 1)
    grid = [low + k * step for k in range(points)]
    heights = [value(at) for at in grid]
    least = min(heights)
    if math.isinf(least):
        return (low + high) / 2
    best = grid[heights.index(least)]
    left, right = max(low, best - step), min(high, best + step)
    inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
    inside = [value(at) for at in inner]
    for _ in range(sections):
        for at, height in zip(inner, inside, strict=True):
            if height < least:
                best, least = at, height
        if inside[0] <= inside[1]:
            right, inner[1], inside[1] = inner[1], inner[0], inside[0]
            inner[0] = right - _GOLDEN * (right - left)
            inside[0] = value(inner[0])
        else:
            left, inner[0], inside[0] = inner[0], inner[1], inside[1]
            inner[1] = left + _GOLDEN * (right - left)
            inside[1] = value(inner[1])
    return best
