"""(E J_F + J_P)⁻¹ at draws of the prior, in float32 where that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exhume.bounds.fisher import (
    MeanMap,
    fisher_information,
    images,
    information_product,
)
from exhume.bounds.inequalities import diagonal_and_factor, jackknife
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator

__all__ = [
    "MeanInformation",
    "invert_mean_information",
    "rounding_of_trace",
    "summed",
]

_SINGLE = 1e-3  # relative error of the bound up to which float32 may serve
_LARGE = 1024  # unknowns from which that is worth its check
# Draws up to which it is: the check's derivatives grow with their square.
_FEW = 8
_DIRECTIONS = 4
_SMALL = 0.5  # rounding relative to the matrix that still counts as a perturbation


class MeanInformation(NamedTuple):
    """What the Bayesian bound reads off the information at n draws.

    Attributes:
        diagonal: of (E J_F + J_P)⁻¹, shape [q].
        without: the same diagonal without each draw, shape [n, q].
        traces: tr J_F at every draw, shape [n].
        rounding: how far rounding may have moved the jackknifed trace, relatively; 0 if
            everything was computed in float64.
    """

    diagonal: Tensor
    without: Tensor
    traces: Tensor
    rounding: float


def invert_mean_information(
    maps: Sequence[MeanMap], batches: Sequence[Tensor], prior: Tensor, key: int
) -> MeanInformation:
    """Invert the mean information of all draws, and of all but one.

    Args:
        maps: whitened map of every draw, see ``information_maps``.
        batches: x of every draw, shape [B, *event] each.
        prior: J_P of the whole batch, shape [q, q].
        key: randomness of the check of float32.

    Raises:
        InvalidInput: a matrix is singular in float64.
    """
    if len(prior) >= _LARGE and len(batches) <= _FEW:
        try:
            quick = _inverted(maps, batches, prior, key, single=True)
        except InvalidInput:
            pass  # the message belongs to float64
        else:
            if quick.rounding < _SINGLE:
                return quick
    return _inverted(maps, batches, prior, key, single=False)


def _inverted(
    maps: Sequence[MeanMap],
    batches: Sequence[Tensor],
    prior: Tensor,
    key: int,
    *,
    single: bool,
) -> MeanInformation:
    n = len(batches)
    informations = [
        fisher_information(whitened, None, x, single=single)
        for whitened, x in zip(maps, batches, strict=True)
    ]
    fisher = sum(informations[1:], informations[0]) / n

    def inverse(information: Tensor, draws: Sequence[int]) -> tuple[Tensor, float]:
        """Return the diagonal for the mean over some draws, and its trace's error."""
        matrix = information + prior
        diagonal, factor = diagonal_and_factor(matrix)
        if not single:
            return diagonal, 0.0

        def gap(vectors: Tensor) -> Tensor:
            exact = [_times(vectors, maps[k], batches[k]) for k in draws]
            mean = sum(exact[1:], exact[0]) / len(exact)
            return matrix @ vectors - prior @ vectors - mean

        local = generator(fold(key, *draws), "rounding")
        shape = (len(prior), 2 * _DIRECTIONS)
        white = torch.randn(shape, generator=local, dtype=torch.float64)
        return diagonal, rounding_of_trace(gap, factor, white.to(matrix))

    diagonal, whole = inverse(fisher, range(n))
    others = [
        inverse((n * fisher - one) / (n - 1), [k for k in range(n) if k != left])
        for left, one in enumerate(informations)
    ]
    without = torch.stack([one for one, _ in others])
    corrected = jackknife(float(diagonal.sum()), summed(without))[0]
    moved = n * whole + (n - 1) * max(error for _, error in others)
    return MeanInformation(
        diagonal=diagonal,
        without=without,
        traces=torch.stack([one.trace() for one in informations]).cpu(),
        rounding=moved / corrected if corrected > 0 else float(moved > 0),
    )


def summed(diagonals: Tensor) -> Tensor:
    """Return traces of diagonals, shape [n, q] → [n], summed in float64."""
    return diagonals.sum(dim=1, dtype=torch.float64).cpu()


def _times(vectors: Tensor, whitened: MeanMap, x: Tensor) -> Tensor:
    """Return J_F T in float64 for columns T, shape [q, K]."""
    product = information_product(whitened, x)
    tangents = vectors.T.reshape(-1, *x.shape)
    return images(product, tangents).reshape(len(tangents), -1).T


@formula(
    r"| \mathrm{tr}\, M^{-1} - \mathrm{tr}\, (M + E)^{-1} | \le "
    r"| \mathrm{tr}\, (M + E)^{-1} E (M + E)^{-1} | + "
    r"\frac{\| L^{-1} E (M + E)^{-1} \|_F^2}{1 - \| L^{-1} E L^{-\top} \|_2},\quad "
    r"M + E = L L^\top",
    reference="ours; M⁻¹ expanded twice about (M + E)⁻¹, M ≥ (1 − ‖L⁻¹EL⁻ᵀ‖)(M + E)",
)
def rounding_of_trace(
    gap: Callable[[Tensor], Tensor], factor: Tensor, white: Tensor
) -> float:
    """Estimate how far rounding E has moved the trace of an inverse.

    Trace and norms are those of random directions, the largest of a few: of the trace
    that is what is typical of its spread as well, and the Frobenius norm is at least
    the spectral norm.

    Args:
        gap: T ↦ E T for columns, shape [q, K] each.
        factor: L of the rounded matrix, shape [q, q].
        white: standard normal directions, shape [q, 2 K].

    Returns:
        The estimate; infinite if E is no small change.
    """
    first, second = white.chunk(2, dim=1)
    tilted = torch.linalg.solve_triangular(factor.mT, first, upper=True)
    spread = torch.cholesky_solve(second, factor)
    moved = gap(torch.cat([tilted, spread], dim=1))
    back = torch.linalg.solve_triangular(factor, moved, upper=False)
    change, rest = back.square().sum(dim=0).chunk(2)
    relative = float(change.max().sqrt())
    if not relative < _SMALL:
        return float("inf")
    linear = (spread * moved.chunk(2, dim=1)[1]).sum(dim=0)
    return float(linear.abs().max()) + float(rest.max()) / (1 - relative)
