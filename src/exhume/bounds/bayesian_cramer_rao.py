"""Bayesian Cramér-Rao (van Trees) bound: no attack has a smaller mean squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.bounds.cramer_rao import (
    bayesian_cramer_rao_bound,
    diagonal_of_inverse,
    jackknife,
    trace_bound,
    trace_of_inverse,
    unbiased_cramer_rao_bound,
)
from exhume.bounds.fisher import MeanMap, fisher_information
from exhume.bounds.gaussian_setting import assumptions, fit_detail, prior_draws
from exhume.bounds.regularity import information_maps
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.bound import Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.tree import flatten
from exhume.problem.world import World

__all__ = ["BayesianCramerRao"]

_SINGLE = 1e-3  # relative error of the bound up to which Jacobians may be float32
_LARGE = 1024  # unknowns from which that is worth its check
# Draws up to which the check can pass: the jackknife multiplies rounding by them.
_FEW = 3
_DIRECTIONS = 4


@dataclass(frozen=True, kw_only=True)
class BayesianCramerRao(Bound):
    """Average the Fisher information over draws of the prior, and invert.

    Attributes:
        draws: number n ≥ 2 of batches drawn from the prior.

    Raises:
        InvalidInput: fewer than two draws.
    """

    bibtex: ClassVar[str] = """
@book{vantrees1968detection,
  title = {Detection, Estimation, and Modulation Theory, Part {I}},
  author = {Van Trees, Harry L.},
  publisher = {Wiley}, year = {1968}
}
@article{gill1995applications,
  title = {Applications of the van {T}rees Inequality: A {B}ayesian
           {C}ram{\\'e}r-{R}ao Bound},
  author = {Gill, Richard D. and Levit, Boris Y.},
  journal = {Bernoulli},
  volume = {1}, number = {1--2}, pages = {59--79}, year = {1995}
}
@misc{chen2024optimal,
  title = {Optimal Defenses Against Gradient Reconstruction Attacks},
  author = {Chen, Yuxiao and G{\\"u}rsoy, Gamze and Lei, Qi},
  year = {2024}, eprint = {2411.03746}, archivePrefix = {arXiv}
}
"""
    draws: int = 8

    def __post_init__(self) -> None:
        if self.draws < 2:
            msg = f"draws is {self.draws}; the bound needs 2 or more to state its error"
            raise InvalidInput(msg)

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | NotApplicable:
        """Evaluate the bound for a world's task, mechanism, labels and batch size.

        Args:
            world: the evaluator's side; its private inputs are not used.
            prior: density of one example; the world's own if None.
            key: calibrates the defenses as ``world.observe(key)`` does, and draws from
                the prior.

        Returns:
            The bound, or the reason why there is none.
        """
        setting = prior_draws(world, prior, self.draws, key)
        if isinstance(setting, NotApplicable):
            return setting
        density, batches = setting
        maps = information_maps(world, batches, key)
        if isinstance(maps, NotApplicable):
            return maps
        informations = _informations(maps, batches, density, key)
        return _value(informations, density, batches[0].shape)


def _informations(
    maps: list[MeanMap], batches: list[Tensor], density: Density, key: int
) -> list[Tensor]:
    """Return J_F at every draw, from float32 Jacobians where that changes nothing."""
    large = batches[0].numel() >= _LARGE and len(batches) <= _FEW
    found: list[Tensor] = []
    for single in (True, False) if large else (False,):
        found = [
            fisher_information(whitened, None, x, single=single)
            for whitened, x in zip(maps, batches, strict=True)
        ]
        if not single:
            break
        prior = torch.block_diag(
            *[density.information().to(found[0])] * len(batches[0])
        )
        matrix = prior + sum(found[1:], found[0]) / len(found)
        # Of bounds that agree to η, the jackknife combines n with n − 1 others.
        error = 2 * _rounding(maps, batches, matrix, key) * (2 * len(found) - 1)
        if error < _SINGLE:
            break
    return found


def _rounding(
    maps: list[MeanMap], batches: list[Tensor], matrix: Tensor, key: int
) -> float:
    """Return η with (1 − η)² M ≤ M' ≤ (1 + η)² M between float64 M and float32 M'.

    η² = E ‖(R₆₄ − R₃₂) M^{-1/2} z‖² is the squared Frobenius norm, so that it exceeds
    the spectral norm that the inequality asks for; its estimate is the largest of a few
    directions. The bound then moves by about 2 η at most, relatively.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return float("inf")
    shape = (len(matrix), _DIRECTIONS)
    white = torch.randn(
        shape, generator=generator(key, "rounding"), dtype=torch.float64
    ).to(matrix)
    tilted = torch.linalg.solve_triangular(factor.mT, white, upper=True)
    squares = torch.zeros(_DIRECTIONS, dtype=torch.float64)
    for whitened, x in zip(maps, batches, strict=True):
        for index, direction in enumerate(tilted.T):
            along = direction.reshape(x.shape)
            exact = torch.func.jvp(whitened, (x,), (along,))[1]
            quick = torch.func.jvp(whitened, (x.float(),), (along.float(),))[1]
            gap = flatten(exact) - flatten(quick).double()
            squares[index] += float(gap.square().sum()) / len(batches)
    return float(squares.max().sqrt())


def _value(
    informations: list[Tensor], density: Density, shape: torch.Size
) -> BoundValue | NotApplicable:
    """Assemble the bound for inputs of a shape from the information at every draw."""
    batch_size = shape[0]
    fisher = sum(informations[1:], informations[0]) / len(informations)
    one_prior = density.information().to(fisher)
    prior = torch.block_diag(*[one_prior] * batch_size)
    try:
        diagonal = diagonal_of_inverse(fisher + prior)
        without = _leave_one_out(informations, fisher, prior)
    except InvalidInput as error:
        return NotApplicable(f"the noise is too weak: {error}")
    plug_in = float(diagonal.sum())
    corrected, standard_error = jackknife(plug_in, without)
    weaker = trace_bound(float(fisher.trace()), float(prior.trace()), len(fisher))
    details = {
        "trace_bound": weaker,
        "prior_variance": batch_size * trace_of_inverse(one_prior),
        "draws": float(len(informations)),
        "monte_carlo_bias": plug_in - corrected,
    }
    return BoundValue(
        name="bayesian-cramer-rao",
        total=max(corrected, weaker),
        standard_error=standard_error,
        unknowns=len(fisher),
        batch_size=batch_size,
        assumptions=assumptions(density, batch_size),
        reference="van Trees 1968; Gill and Levit 1995",
        details=details | _unbiased(fisher) | fit_detail(density),
        # (E J_F + J_P)⁻¹ bounds each coordinate on its own.
        per_coordinate=diagonal.reshape(shape),
    )


def _leave_one_out(informations: list[Tensor], fisher: Tensor, prior: Tensor) -> Tensor:
    """Return the bound without each draw in turn, shape [n]."""
    n = len(informations)
    without = [
        bayesian_cramer_rao_bound((n * fisher - one) / (n - 1), prior)
        for one in informations
    ]
    return torch.tensor(without, dtype=torch.float64)


def _unbiased(fisher: Tensor) -> dict[str, float]:
    """Return the bound for unbiased attacks, if there are any."""
    try:
        return {"unbiased": unbiased_cramer_rao_bound(fisher)}
    except InvalidInput:
        return {}
