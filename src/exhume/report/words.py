"""Numbers and lists as a reader expects them in print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["also", "count", "finite", "median", "number", "score", "several", "ten"]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ten(exponent: int) -> str:
    """Write a power of ten, e.g. 10⁻³."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits; – for none, ∞ for infinity."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    return f"{mantissa}×{ten(int(exponent))}"


def score(metric: str, value: float | None, unit: str = "") -> str:
    """Write one value of a metric with its unit."""
    if value is None or not math.isfinite(value):
        text = number(value)
    elif metric == "psnr":
        text = f"{value:.1f}".replace("-", "−")
    elif metric in {"ssim", "ncc", "label-accuracy"}:
        text = f"{value:.2f}".replace("-", "−")
    else:
        text = number(value)
    return f"{text} {unit}" if unit and text != "–" else text


def count(n: int, noun: str) -> str:
    """Write a number of things: 1 face, 2 faces."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def several(parts: Sequence[str], last: str = "and") -> str:
    """Join parts as prose: a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def also(labels: Sequence[str], limit: int = 4) -> str:
    """Join labels as prose, naming at most ``limit`` of them."""
    if len(labels) <= limit:
        return several(labels)
    return several([*labels[:limit], f"{len(labels) - limit} more"])


def finite(values: Iterable[float | None]) -> list[float]:
    """Drop what is undefined (None, NaN); infinities stay."""
    return [v for v in values if v is not None and not math.isnan(v)]


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of what is defined, or None.

    Half-way between a finite and an infinite middle value lies the finite one, so that
    one exact picture of two does not turn the summary into infinity.
    """
    ordered = sorted(finite(values))
    if not ordered:
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low if math.isfinite(low) else high
