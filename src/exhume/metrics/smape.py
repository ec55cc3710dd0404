"""Symmetric mean absolute percentage error per example, between 0 and 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from exhume.formula import formula
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric
from exhume.registry import registered_name

__all__ = ["Smape", "symmetric_percentage_errors"]

_FLOOR: Final = 1e-8


@formula(
    r"\mathrm{sMAPE}_i = \tfrac1d \sum_k"
    r" \frac{2\, |\hat x_{ik} - x_{ik}|}{|\hat x_{ik}| + |x_{ik}| + 10^{-8}}",
    reference="Meijer et al. (SaTML 2025), the metric of forecasting",
)
def symmetric_percentage_errors(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the symmetric mean absolute percentage error of each example.

    sMAPE_i = (1/d) Σ_k 2 |x̂_ik − x_ik| / (|x̂_ik| + |x_ik| + 10⁻⁸).

    Args:
        guess: x̂, shape [B, *event].
        truth: x, shape [B, *event].

    Returns:
        shape [B], float64, in [0, 2]; a share, not points of 100.
    """
    guess, truth = guess.double(), truth.double()
    size = guess.abs() + truth.abs() + _FLOOR
    return (2 * (guess - truth).abs() / size).flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class Smape(Metric):
    """Symmetric mean absolute percentage error; it depends on where zero lies."""

    label: ClassVar[str] = "sMAPE"
    higher_is_better: ClassVar[bool] = False

    def __call__(
        self, guess: Tensor, truth: Tensor, spec: EventSpec
    ) -> Tensor | NotApplicable:
        """Score each example of data that are ranked by it."""
        if spec.error != registered_name(type(self)):
            return NotApplicable("sMAPE is for data whose zero means something: series")
        return symmetric_percentage_errors(guess, truth)
