"""Cramér-Rao bound: what unbiased attacks cannot beat, from the inverse information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.bounds.evaluation_points import evaluation_points
from exhume.bounds.fisher import fisher_information
from exhume.bounds.inequalities import unbiased_cramer_rao_bound
from exhume.bounds.monte_carlo import average, average_until_settled
from exhume.bounds.regularity import information_map_at
from exhume.errors import InvalidInput
from exhume.problem.bound import Binds, Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["CramerRao"]


@dataclass(frozen=True, kw_only=True)
class CramerRao(Bound):
    """E_x tr J_F(x)⁻¹ over draws of the prior; unbiased attacks only.

    It holds at every x by itself, so its average bounds the average. Never below
    ``bayesian-cramer-rao``, and at strong noise above the error of a constant guess,
    which is biased: no attack that shrinks towards a mean is bound by it. A release
    that hides one direction altogether allows no unbiased attack, and has no number.

    Attributes:
        draws: batches from the prior, or from the public examples, over which the
            bound is averaged.

    Raises:
        InvalidInput: fewer than two draws.
    """

    bibtex: ClassVar[str] = """
@book{cramer1946mathematical,
  title = {Mathematical Methods of Statistics},
  author = {Cram{\\'e}r, Harald},
  publisher = {Princeton University Press}, year = {1946}
}
@article{rao1945information,
  title = {Information and the Accuracy Attainable in the Estimation of Statistical
           Parameters},
  author = {Rao, C. Radhakrishna},
  journal = {Bulletin of the Calcutta Mathematical Society},
  volume = {37}, pages = {81--91}, year = {1945}
}
"""
    draws: int = 8

    def __post_init__(self) -> None:
        if self.draws < 2:
            msg = f"draws is {self.draws}; the bound needs 2 or more to state its error"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return few draws."""
        return (cls(draws=4),)

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | NotApplicable:
        """Evaluate it at draws of the prior, or at public examples.

        Args:
            world: the evaluator's side; its private inputs are not used.
            prior: density of one example; the world's own if None.
            key: calibrates the defenses as ``world.observe(key)`` does, and draws.

        Returns:
            The bound, or the reason why there is none.
        """
        density = world.prior if prior is None else prior
        points = evaluation_points(world, density, 2, key)
        if isinstance(points, NotApplicable):
            return points
        at = information_map_at(world, points, key, density)
        if isinstance(at, NotApplicable):
            return at
        variances: list[Tensor] = []

        def estimate(count: int) -> BoundValue:
            batches = evaluation_points(world, density, count, key)
            assert not isinstance(batches, NotApplicable)  # there were two
            # One after the other: only the diagonals are kept.
            for x in batches[len(variances) :]:
                fisher = fisher_information(at(x), None, x)
                variances.append(unbiased_cramer_rao_bound(fisher))
            return _value(torch.stack(variances), points[0].shape)

        try:
            return average_until_settled(self.draws, estimate)
        except InvalidInput:
            return NotApplicable(
                "the Fisher information is singular in float64: the release hides some "
                "direction of the data, so no attack is unbiased there"
            )


def _value(variances: Tensor, shape: torch.Size) -> BoundValue:
    """Average over the points.

    Args:
        variances: diagonal of J_F⁻¹ at every point, shape [n, q].
        shape: of the inputs, [B, *event].
    """
    totals = variances.sum(dim=1).cpu()
    mean, error = average(totals)
    return BoundValue(
        name="cramer-rao",
        total=mean,
        standard_error=error,
        unknowns=variances.shape[1],
        batch_size=shape[0],
        assumptions=(
            "The attack is unbiased at every input. Attacks that shrink towards a "
            "mean or use a prior are not, and beat it; no attack beats the "
            "Bayesian Cramér-Rao bound.",
            "The labels, the weights and the defense are known to the attacker.",
            "The mean of the release is a continuous function of the data and "
            "differentiable almost everywhere (checked between the points of "
            "evaluation).",
            "It is an average over draws of the prior or over public examples; a "
            "few of them, where the release says little, may make most of it.",
        ),
        reference="Cramér 1946; Rao 1945",
        binds=Binds.UNBIASED_ATTACKS,
        details={"draws": float(len(totals)), "median": float(totals.median())},
        per_coordinate=variances.mean(dim=0).reshape(shape),
    )
