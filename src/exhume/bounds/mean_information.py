"""(E J_F + J_P)⁻¹ at draws of the prior, in float32 where that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from exhume.bounds.fisher import (
    MeanMap,
    fisher_information,
    images,
    information_product,
    pushforward,
)
from exhume.bounds.inequalities import diagonal_and_factor
from exhume.bounds.monte_carlo import jackknife
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.tree import size

__all__ = [
    "GROUPS",
    "InformationSums",
    "MeanInformation",
    "invert_mean_information",
    "rounding_of_trace",
    "summed",
]

_SINGLE = 1e-3  # relative error of the bound up to which float32 may serve
_LARGE = 1024  # unknowns from which that is worth its check
# Draws up to which it is: the check's derivatives grow with their square.
_FEW = 8
_BYTES = 2**26  # of derivatives at several draws that are held at once
#: of draws: each costs an inverse, and is kept
GROUPS = 16
_DIRECTIONS = 4
_SMALL = 0.5  # rounding relative to the matrix that still counts as a perturbation


class MeanInformation(NamedTuple):
    """What the Bayesian bound reads off the information at n draws, in g groups.

    Attributes:
        diagonal: of (E J_F + J_P)⁻¹, shape [q].
        without: the same diagonal without each group of draws, shape [g, q].
        traces: tr J_F at every draw, shape [n].
        factor: L with L Lᵀ = E J_F + J_P, shape [q, q].
        rounding: how far rounding may have moved the jackknifed trace, relatively; 0 if
            everything was computed in float64.
    """

    diagonal: Tensor
    without: Tensor
    traces: Tensor
    factor: Tensor
    rounding: float


@dataclass
class InformationSums:
    """Sums of the information over draws, in up to 16 groups of equal size.

    Attributes:
        prior: J_P of the whole batch, shape [q, q].
        at: x ↦ a map whose Jacobian R at x has RᵀR = J_F.
        single: whether derivatives are in float32.
        batches: x of every draw, shape [B, *event] each.
        traces: tr J_F of every draw.
        groups: Σ J_F over draw k, k + g, k + 2 g, …, shape [q, q] each.
    """

    prior: Tensor
    at: Callable[[Tensor], MeanMap]
    single: bool = False
    batches: list[Tensor] = field(default_factory=list)
    traces: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)

    def add(self, batches: Sequence[Tensor]) -> None:
        """Take more draws in: the first ones, or as many as there are already."""
        known, whole = len(self.batches), len(self.batches) + len(batches)
        own = whole if whole <= GROUPS else len(self.groups) or GROUPS
        for draw, information in enumerate(self._informations(batches), start=known):
            self.traces.append(information.trace())
            if draw < own:
                self.groups.append(information)
            else:
                self.groups[draw % own] += information
        self.batches += batches

    def _informations(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield J_F of every draw; of many small ones together."""
        first = batches[0]
        columns = len(self.prior) * size(self.at(first)(first))
        together = 1 if self.single else _BYTES // (8 * columns)
        if together <= 1:
            for x in batches:
                yield fisher_information(self.at(x), None, x, single=self.single)
            return

        def information(x: Tensor) -> Tensor:
            along = pushforward(self.at(x), x)
            unit = torch.eye(x.numel()).to(x).reshape(-1, *x.shape)
            found = images(along, unit, x.numel())
            return found @ found.T

        for start in range(0, len(batches), together):
            points = torch.stack(list(batches[start : start + together]))
            yield from images(information, points, together).detach()

    def inverse(self, key: int) -> MeanInformation:
        """Invert the mean information of all draws, and of all but each group.

        Args:
            key: randomness of the check of float32.

        Raises:
            InvalidInput: a matrix is singular in float64.
        """
        n, g = len(self.batches), len(self.groups)
        fisher = sum(self.groups[1:], self.groups[0])
        diagonal, factor, whole = self._inverse(fisher / n, range(n), key)
        without, errors = [], []
        for left, group in enumerate(self.groups):
            others = [k for k in range(n) if k % g != left]
            mean = (fisher - group) / len(others)
            found, _, error = self._inverse(mean, others, key)
            without.append(found)
            errors.append(error)
        corrected = jackknife(float(diagonal.sum()), summed(torch.stack(without)))[0]
        moved = g * whole + (g - 1) * max(errors)
        return MeanInformation(
            diagonal=diagonal,
            without=torch.stack(without),
            traces=torch.stack(self.traces).cpu(),
            factor=factor,
            rounding=moved / corrected if corrected > 0 else float(moved > 0),
        )

    def _inverse(
        self, information: Tensor, draws: Sequence[int], key: int
    ) -> tuple[Tensor, Tensor, float]:
        """Return diagonal and factor for the mean over some draws, and the rounding."""
        matrix = information + self.prior
        diagonal, factor = diagonal_and_factor(matrix)
        if not self.single:
            return diagonal, factor, 0.0

        def gap(vectors: Tensor) -> Tensor:
            points = [self.batches[k] for k in draws]
            exact = [_times(vectors, self.at(x), x) for x in points]
            mean = sum(exact[1:], exact[0]) / len(exact)
            return matrix @ vectors - self.prior @ vectors - mean

        local = generator(fold(key, *draws), "rounding")
        shape = (len(matrix), 2 * _DIRECTIONS)
        white = torch.randn(shape, generator=local, dtype=torch.float64)
        return diagonal, factor, rounding_of_trace(gap, factor, white.to(matrix))


def invert_mean_information(
    at: Callable[[Tensor], MeanMap],
    batches: Sequence[Tensor],
    prior: Tensor,
    key: int,
    sums: InformationSums | None = None,
) -> tuple[InformationSums, MeanInformation]:
    """Invert the mean information of all draws, and of all but each group of them.

    Args:
        at: x ↦ a map whose Jacobian R at x has RᵀR = J_F, of ``information_map_at``.
        batches: x of every draw, shape [B, *event] each.
        prior: J_P of the whole batch, shape [q, q].
        key: randomness of the check of float32.
        sums: over the first half of the draws, if they are known.

    Returns:
        The sums over all draws, and the inverse.

    Raises:
        InvalidInput: a matrix is singular in float64.
    """
    single = len(prior) >= _LARGE and len(batches) <= _FEW
    if sums is None or (sums.single and not single):
        sums = InformationSums(prior, at, single)
    sums.add(batches[len(sums.batches) :])
    if not sums.single:
        return sums, sums.inverse(key)
    with suppress(InvalidInput):  # whether it is singular, float64 says
        quick = sums.inverse(key)
        if quick.rounding < _SINGLE:
            return sums, quick
    double = InformationSums(prior, at)
    return invert_mean_information(at, batches, prior, key, double)


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
