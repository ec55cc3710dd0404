"""Utility losses in words."""

from __future__ import annotations

import math

from exhume.audit.report.results import described
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.report.words import number
from exhume.runs.records import BOUNDED_METRIC

__all__ = [
    "AXIS",
    "mse_of_psnr",
    "parse_error",
    "parse_loss",
    "shown",
    "told_loss",
    "told_range",
]

#: what the axis of a utility loss says
AXIS = {
    "accuracy": "accuracy lost, points of 100",
    "loss": "training loss added",
    "u1": "first-order decrease lost, %",
    "u2": "noise along the gradient, as isotropic std",
}
_NOUN = {
    "accuracy": " of accuracy",
    "loss": " of training loss",
    "u1": " of the first-order decrease",
    "u2": " of isotropic noise",
}


def shown(utility: str, value: float) -> str:
    """Write a utility loss as a table does: ``2.9 %`` or ``0.031``."""
    if utility in ("accuracy", "u1") and math.isfinite(value):
        return f"{100 * value:.1f} %".replace("-", "−")
    return number(value)


def told_loss(utility: str, value: float) -> str:
    """Write a utility loss as a sentence does: ``2.9 % of accuracy``."""
    return shown(utility, value) + _NOUN[utility]


def told_range(utility: str, ends: tuple[float, float]) -> str:
    """Write an interval of utility losses; "" if it is unbounded."""
    if not all(map(math.isfinite, ends)):
        return ""
    low, high = (shown(utility, end).removesuffix(" %") for end in ends)
    return f"{low} to {high}"


def parse_loss(text: str) -> float:
    """Read a utility loss: ``0.03`` or ``3%``."""
    bare = text.strip()
    try:
        return float(bare[:-1]) / 100 if bare.endswith("%") else float(bare)
    except ValueError as error:
        msg = f"{text!r} is no utility loss; give a number such as 0.03, or 3%"
        raise InvalidInput(msg) from error


@formula(
    r"\mathrm{MSE} = 10^{-\mathrm{PSNR}/10}",
    reference="definition, for data in [0, 1]",
)
def mse_of_psnr(psnr: float) -> float:
    """Return the mean squared error of a peak signal-to-noise ratio.

    Args:
        psnr: in decibels, for data in [0, 1].
    """
    return 10 ** (-psnr / 10)


def parse_error(text: str, metric: str = BOUNDED_METRIC) -> float:
    """Read an error: a number, ``0.02``, or a squared error as a PSNR, ``17dB``.

    Args:
        text: what the user wrote.
        metric: whose error it is.
    """
    bare, squared = text.strip().lower(), metric == BOUNDED_METRIC
    try:
        if bare.endswith("db") and squared:
            return mse_of_psnr(float(bare[:-2]))
        return float(bare)
    except ValueError as error:
        what = "a mean squared error such as 0.02, or a PSNR such as 17dB"
        if not squared:
            what = f"a mean {described(metric).quantity} such as 0.02"
        msg = f"{text!r} is no error; give {what}"
        raise InvalidInput(msg) from error
