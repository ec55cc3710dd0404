"""The span of the inputs, read off the change of the layer that they enter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = ["InputSpan", "decayed_change", "input_span", "noise_edge", "pull_of_decay"]

# Singular values below this share of the largest are rounding, in single precision.
_ROUNDING = 1e-6
# Grid and steps of the search for the pull of weight decay.
_GRID, _STEPS = 60, 60
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class InputSpan:
    """Directions in which inputs lie.

    Attributes:
        basis: orthonormal rows, shape [k, d].
        values: all singular values of the change, falling.
        gap: σ_k / σ_{k+1}; infinite if nothing is left.
    """

    basis: Tensor
    values: Tensor
    gap: float


@formula(
    r"\Delta = W_T - c\, W_0,\quad \operatorname{rowspace}(\Delta) \subseteq"
    r" \operatorname{span}\{x_i\}",
    reference="chain rule: every SGD step adds δᵀX to W; c is the pull of the decay",
)
def decayed_change(change: Tensor, start: Tensor, pull: float) -> Tensor:
    """Return the part of the change of a weight that the data made.

    Args:
        change: W_T − W_0, shape [o, d].
        start: W_0, same shape.
        pull: c, what weight decay alone makes of a weight of 1.
    """
    return change + (1 - pull) * start


@formula(
    r"\sigma (\sqrt{o} + \sqrt{d})",
    reference="largest singular value of a Gaussian matrix; Davidson and Szarek (2001)",
)
def noise_edge(std: float, rows: int, columns: int) -> float:
    """Return the singular value above which noise alone does not reach.

    Args:
        std: σ ≥ 0 of every entry.
        rows: o of the matrix.
        columns: d of the matrix.
    """
    return std * (math.sqrt(rows) + math.sqrt(columns))


def input_span(change: Tensor, most: int, std: float = 0.0) -> InputSpan:
    """Return the row space of the change of a weight matrix.

    The rank is the number of singular values above rounding and noise, and at most the
    number of examples.

    Args:
        change: Δ, shape [o, d].
        most: examples that made it, the largest rank that is possible.
        std: of independent noise on every entry.
    """
    _, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    floor = max(_ROUNDING * float(values[0]), noise_edge(std, *change.shape))
    above = int((values > floor).sum())
    rank = max(1, min(most, above))
    after = float(values[rank]) if rank < len(values) else 0.0
    gap = float(values[rank - 1]) / after if after > 0 else math.inf
    return InputSpan(right[:rank], values, gap)


def pull_of_decay(change: Tensor, start: Tensor, rank: int) -> float:
    """Find the pull c of weight decay: where Δ has the least (rank + 1)-th value.

    Args:
        change: W_T − W_0, shape [o, d].
        start: W_0, same shape.
        rank: of the data's part, below both sizes.

    Returns:
        c in [0, 1.05].
    """

    def next_value(pull: float) -> float:
        data = decayed_change(change.double(), start.double(), pull)
        return float(torch.linalg.svdvals(data)[rank])

    grid = [1.05 * k / _GRID for k in range(_GRID + 1)]
    nearest = min(range(len(grid)), key=lambda k: next_value(grid[k]))
    low, high = grid[max(nearest - 1, 0)], grid[min(nearest + 1, _GRID)]
    for _ in range(_STEPS):
        a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, b) if next_value(a) < next_value(b) else (a, high)
    return (low + high) / 2
