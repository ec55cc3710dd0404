"""Exponents: slopes of log error against log quantity, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = ["Slope", "anchored", "fit_slope", "slope_of"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Slope:
    """A fitted exponent.

    Attributes:
        value: the exponent.
        low: lower end of the 95 % interval.
        high: upper end.
        points: measurements behind it.
    """

    value: float
    low: float
    high: float
    points: int

    @property
    def known(self) -> bool:
        """Whether there were enough measurements for an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        """Half the width of the interval, infinite if there is none."""
        return (self.high - self.low) / 2


@formula(
    r"\hat\alpha = \frac{\sum_{s,i} (u_{si} - \bar u_s)(v_{si} - \bar v_s)}"
    r"{\sum_{s,i} (u_{si} - \bar u_s)^2},\quad u = \log q,\; v = \log R",
    reference="least squares with one intercept per seed; Student's t interval",
)
def fit_slope(by_seed: Mapping[int, Sequence[tuple[float, float]]]) -> Slope:
    """Fit R = c_s q^α to the measurements of several seeds.

    A seed has its own batch, which is easier or harder at all sizes at once; one
    constant per seed takes this out of the residuals.

    Args:
        by_seed: seed → (quantity q > 0, error R > 0), of two or more quantities.

    Returns:
        The exponent with its 95 % interval, of n − S − 1 degrees of freedom for n
        measurements of S seeds; unbounded if none is left.

    Raises:
        InvalidInput: a number is not positive, or no seed has two quantities.
    """
    centred = [pair for points in by_seed.values() for pair in _centred(points)]
    spread = sum(u * u for u, _ in centred)
    if not spread > 0:
        msg = "a slope needs two different quantities in at least one seed"
        raise InvalidInput(msg)
    value = sum(u * v for u, v in centred) / spread
    seeds = sum(1 for points in by_seed.values() if points)
    freedom = len(centred) - seeds - 1
    half = math.inf
    if freedom > 0:
        from scipy.stats import t

        rest = sum((v - value * u) ** 2 for u, v in centred)
        error = math.sqrt(rest / freedom / spread)
        half = float(t.ppf((1 + _LEVEL) / 2, freedom)) * error
    return Slope(value, value - half, value + half, len(centred))


def _centred(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return (log q, log R) less their means over the seed."""
    if not all(q > 0 and r > 0 for q, r in points):
        msg = f"a slope on log axes needs positive numbers, got {list(points)}"
        raise InvalidInput(msg)
    logs = [(math.log(q), math.log(r)) for q, r in points]
    if not logs:
        return []
    mean_u = sum(u for u, _ in logs) / len(logs)
    mean_v = sum(v for _, v in logs) / len(logs)
    return [(u - mean_u, v - mean_v) for u, v in logs]


def slope_of(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares exponent of one curve."""
    return fit_slope({0: points}).value


def anchored(
    points: Sequence[tuple[float, float]], exponent: float
) -> list[tuple[float, float]]:
    """Draw q^exponent as low as it can be without falling below any point.

    A rate is known up to its constant: its direction is a statement, its height is not.

    Args:
        points: (quantity, error), positive.
        exponent: of the rate.
    """
    constant = max(r / q**exponent for q, r in points)
    return [(q, constant * q**exponent) for q, _ in points]
