"""Normalised cross-correlation: likeness of shape, whatever brightness and contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric

__all__ = ["NormalisedCrossCorrelation", "pearson_correlations"]

# Deviations below this share of an example's size are rounding: it has no contrast.
_FLAT = 1e-6


@formula(
    r"\mathrm{NCC}_i = \frac{\langle \hat x_i - \bar{\hat x}_i, x_i - \bar x_i \rangle}"
    r"{\lVert \hat x_i - \bar{\hat x}_i \rVert\, \lVert x_i - \bar x_i \rVert}",
    reference="Pearson's correlation over coordinates; as Haim et al. (NeurIPS 2022)",
)
def pearson_correlations(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the correlation over the coordinates of each example.

    The bar is the mean over the coordinates of one example. Images of one kind share
    their mean image, which alone correlates them; compare with examples that were never
    seen.

    Args:
        guess: x̂, shape [B, *event].
        truth: x, same shape.

    Returns:
        shape [B], float64, in [−1, 1]; 0 where either has no contrast.
    """
    return (_centred(guess) * _centred(truth)).sum(dim=1).clamp(-1, 1)


def _centred(examples: Tensor) -> Tensor:
    rows = examples.detach().double().flatten(1)
    moved = rows - rows.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    size = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > _FLAT * size, moved / length.clamp_min(1e-300), 0.0)


@dataclass(frozen=True, kw_only=True)
class NormalisedCrossCorrelation(Metric):
    """Correlation of an estimate with its example, over pixels or coordinates."""

    label: ClassVar[str] = "NCC"
    higher_is_better: ClassVar[bool] = True

    def __call__(
        self, guess: Tensor, truth: Tensor, spec: EventSpec
    ) -> Tensor | NotApplicable:
        """Score each example."""
        if spec.dimension < 2:
            return NotApplicable("a correlation needs at least two coordinates")
        return pearson_correlations(guess, truth)
