"""Draws that were held out: what they say of an inverse made from other draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from exhume.bounds.fisher import MeanMap, images, pushforward
from exhume.bounds.mean_information import GROUPS
from exhume.bounds.monte_carlo import largest_shape
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.bound import BoundValue, NotApplicable
from exhume.problem.tree import size

__all__ = [
    "AFFORDABLE",
    "HELD_OUT",
    "HeldOut",
    "checked_average",
    "held_out_ratio",
    "powers",
    "random_signs",
    "spread_of_trace",
]

#: draws that check an average
HELD_OUT = 512
#: derivatives that are spent at once, so that few unknowns have many draws
AFFORDABLE = 2**14
_BYTES = 2**28  # of derivatives that are held at once
_TOGETHER = 256
_PROBED = 256  # held-out draws at which traces are found
_PROBES = 12  # directions that find them; with so many unknowns or fewer, exactly
_FEWEST = 8  # draws that an average is made of
_SMALL = 0.05  # relative standard error that draws are added for
_MOST = 64  # draws that are added up to
_MOST_OF_FEW = 512  # draws at once where unknowns are few
_UNSETTLED = 0.5  # relative standard error from which an average says nothing
# Relative standard error of the information from which a few draws make most of it.
_RARE = 0.15
# Share of a bound that draws held out have to allow.
_AGREED = 0.8


class HeldOut(NamedTuple):
    """What fresh draws say of W = (Ē J_F + J_P)⁻¹, with Ē the mean of other draws.

    Attributes:
        plug_in: tr W.
        ratio: ρ, see :func:`held_out_ratio`; 1 if the other draws were representative.
        error: its standard error.
        shape: of the tail of the information, see ``pareto_shape``.
        spread: standard deviation of tr W J_F(x) W over draws x: by so much one draw
            among n changes tr W, times n.
        noise: standard error of tr W from anything but the number of draws.
    """

    plug_in: float
    ratio: float
    error: float
    shape: float
    spread: float
    noise: float = 0.0

    @property
    def bound(self) -> float:
        """A lower bound on the bound itself, ρ tr W."""
        return self.ratio * self.plug_in

    @property
    def refusal(self) -> str | None:
        """Say so if rare draws make most of the information, or return None."""
        largest = largest_shape(HELD_OUT)
        if self.shape <= largest and self.error <= _RARE * self.ratio:
            return None
        return (
            f"a few rare draws of the prior carry most of the information, so that no "
            f"average over draws can be trusted: over {HELD_OUT} draws its relative "
            f"error is {self.error / self.ratio:.0%} and the Pareto shape of its tail "
            f"{self.shape:.2f} (trusted up to {_RARE:.0%} and {largest:.2f}); networks "
            f"that are saturated at most inputs do this"
        )

    def standard_error(self, draws: int) -> float:
        """Return the error of tr W from so many draws."""
        return math.hypot(self.spread / draws**0.5, self.noise)

    def contradicts(self, value: BoundValue) -> bool:
        """Whether the fresh draws allow significantly less than a bound."""
        allowed = (self.ratio + 2 * self.error) * self.plug_in
        return allowed < _AGREED * (value.total - 2 * value.standard_error)


@formula(
    r"\mathrm{tr}\, M^{-1} \ge \frac{(\mathrm{tr}\, W)^2}{\mathrm{tr}\, W M W} = "
    r"\rho\, \mathrm{tr}\, W,\quad \rho = \frac{E\, z^\top W z}{E\, z^\top W M W z},\; "
    r"M = E_x J_F + J_P,\; z_j = \pm 1",
    reference="Cauchy-Schwarz, for any W ≥ 0 that is independent of the draws in ρ",
)
def held_out_ratio(claimed: Tensor, seen: Tensor) -> tuple[float, float]:
    """Return ρ and its standard error: ρ tr W is below the bound, whatever W is.

    Args:
        claimed: zᵀ W z of independent z, shape [n].
        seen: zᵀ W (J_F(x) + J_P) W z of independent draws x and the same z, shape [n].
    """
    ratio = claimed.mean() / seen.mean()
    spread = (claimed - ratio * seen).std() / len(seen) ** 0.5
    return float(ratio), float(spread / seen.mean())


def checked_average(
    draws: int,
    unknowns: int,
    estimate: Callable[[int], BoundValue],
    check: Callable[[], HeldOut],
) -> BoundValue | NotApplicable:
    """Average over as many draws as their spread asks for, and check the average.

    The number of draws follows from draws that are held out, so that it does not depend
    on the average: one that is stopped where its own draws agree is too large too
    often, because rare draws with more information are missing. The standard error is
    the root of the mean of two estimates of its square: of the jackknife, and to first
    order of the draws held out.

    Args:
        draws: number to begin with.
        unknowns: q, derivatives per draw.
        estimate: number of draws → the bound; called with twice as many as before.
        check: compares the last estimate with fresh draws.

    Returns:
        The bound with its standard error, and ``held_out`` and ``pareto_shape`` among
        its details; or why no average can be trusted.
    """
    count = max(draws, _FEWEST, min(AFFORDABLE // unknowns, _MOST_OF_FEW))
    if count > GROUPS:
        count = -(-count // GROUPS) * GROUPS
    most = max(count, _MOST)
    while True:
        value, found = estimate(count), check()
        if found.refusal is not None:
            return NotApplicable(found.refusal)
        linear = found.standard_error(count)
        # Two independent estimates of one variance; draws stop by that which knows
        # nothing of the average.
        error = ((linear**2 + value.standard_error**2) / 2) ** 0.5
        value = replace(value, standard_error=error)
        settled = not found.contradicts(value)
        if (settled and linear <= _SMALL * value.total) or 2 * count > most:
            break
        count *= 2
    if not settled or not error < _UNSETTLED * value.total:
        return NotApplicable(
            f"the average over {count} draws of the prior has not settled: the "
            f"bound is {value.total:.2g} ± {error:.2g}, and other draws allow "
            f"{found.bound:.2g}; raise the option draws"
        )
    more = {"held_out": found.bound, "pareto_shape": found.shape}
    return replace(value, details={**value.details, **more})


def random_signs(points: Tensor, key: int) -> Tensor:
    """Return independent ±1, of the shape and type of the points."""
    source = generator(key, "signs")
    return (2 * torch.randint(0, 2, points.shape, generator=source) - 1).to(points)


def powers(at: Callable[[Tensor], MeanMap], points: Tensor, tangents: Tensor) -> Tensor:
    """Return tᵀ J_F(x) t of many pairs, by one forward derivative each.

    Args:
        at: x ↦ a map whose Jacobian R at x has RᵀR = J_F, of ``information_map_at``.
        points: x, shape [n, B, *event].
        tangents: t, same shape.

    Returns:
        shape [n].
    """

    def power(pair: Tensor) -> Tensor:
        x, tangent = pair
        return pushforward(at(x), x)(tangent).square().sum().reshape(1)

    observed = size(at(points[0])(points[0]))
    together = max(1, min(_TOGETHER, _BYTES // (8 * observed)))
    pairs = torch.stack([points, tangents], dim=1)
    return images(power, pairs, together).detach()[:, 0]


@formula(
    r"\mathrm{Var}_x\, \mathrm{tr}\, A(x) = E_{z \ne z'} \mathrm{Cov}_x\big( "
    r"z^\top A(x) z,\; z'^\top A(x) z' \big),\quad A(x) = W J_F(x) W",
    reference="Hutchinson 1990, the same independent z, z′ at every x",
)
def spread_of_trace(
    at: Callable[[Tensor], MeanMap],
    points: Tensor,
    tilt: Callable[[Tensor], Tensor],
    key: int,
    *,
    probes: int = _PROBES,
) -> float:
    """Return the standard deviation of tr W J_F(x) W over draws x.

    With few unknowns the directions are a basis and the traces exact.

    Args:
        at: x ↦ a map whose Jacobian R at x has RᵀR = J_F.
        points: x, shape [n, B, *event].
        tilt: z ↦ W z for rows, shape [K, q] each.
        key: randomness of the directions.
        probes: number of directions K ≥ 2.
    """
    points, unknowns = points[:_PROBED], points[0].numel()
    exact = unknowns <= _PROBES
    white = (
        torch.eye(unknowns).to(points)
        if exact
        else random_signs(points.new_empty(probes, unknowns), key)
    )
    seen = [
        powers(at, points, t.reshape(points.shape[1:]).expand_as(points))
        for t in tilt(white)
    ]
    values = torch.stack(seen).double()
    if exact:
        return float(values.sum(dim=0).std())
    covariance = torch.cov(values)
    between = covariance.sum() - covariance.trace()
    return float((between / (probes * (probes - 1))).clamp(min=0).sqrt())
