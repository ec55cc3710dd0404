"""Mean squared error per example, in squared units of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exhume.formula import formula
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric

__all__ = ["Mse", "mean_squared_errors"]


@formula(
    r"\mathrm{MSE}_i = \tfrac{1}{d}\, \lVert \hat x_i - x_i \rVert_2^2",
    reference="definition",
)
def mean_squared_errors(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error of each example.

    MSE_i = ‖x̂_i − x_i‖² / d.

    Args:
        guess: x̂, shape [B, *event].
        truth: x, shape [B, *event].

    Returns:
        shape [B], float64, ≥ 0, in squared units of the data.
    """
    return (guess.double() - truth.double()).square().flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class Mse(Metric):
    """Mean squared error per coordinate; comparable with ``BoundValue.mse``."""

    label: ClassVar[str] = "MSE"
    quantity: ClassVar[str] = "squared error"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, guess: Tensor, truth: Tensor, spec: EventSpec) -> Tensor:
        """Score each example; fits every kind of real-valued data."""
        del spec
        return mean_squared_errors(guess, truth)
