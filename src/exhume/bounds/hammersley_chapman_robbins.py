"""Hammersley-Chapman-Robbins bound from Rényi privacy, for unbiased attacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from exhume.bounds.accounting import (
    check_training,
    guarantee_of,
    training_assumptions,
)
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.bound import Binds, Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = [
    "HammersleyChapmanRobbins",
    "gaussian_renyi_two",
    "hammersley_chapman_robbins_bound",
]


@formula(
    r"\varepsilon_2 = T \left( \Delta / \sigma \right)^2",
    reference="Mironov, CSF 2017, proposition 7, at order 2",
)
def gaussian_renyi_two(multiplier: float, steps: int, moved: int) -> float:
    """Return the Rényi divergence of order 2 of T Gaussian releases.

    Args:
        multiplier: σ, noise over the sensitivity of adding or removing one unit.
        steps: T; divergences add.
        moved: Δ, by how many sensitivities the means differ: 2 if a unit is replaced.
    """
    return steps * (moved / multiplier) ** 2


@formula(
    r"\frac1d E \| \hat x - x \|^2 \ge "
    r"\frac{\mathrm{diam}^2 / 4}{e^{\varepsilon_2} - 1}",
    reference="Guo et al., ICML 2022, theorem 1",
)
def hammersley_chapman_robbins_bound(diameter: float, renyi_two: float) -> float:
    """Bound the mean squared error per coordinate of unbiased attacks.

    Args:
        diameter: length of the range of a coordinate.
        renyi_two: ε₂ > 0, Rényi divergence of order 2 between neighbours.

    Returns:
        The bound; 0 where the exponential overflows.
    """
    try:
        return diameter**2 / 4 / math.expm1(renyi_two)
    except OverflowError:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class HammersleyChapmanRobbins(Bound):
    """(diam² / 4) / (exp ε₂ − 1) per coordinate, with replacement of one unit.

    It needs no derivative, so it also holds for networks that jump (ReLU).

    Attributes:
        steps: releases T that the attacker sees.
        diameter: length of the range of a coordinate; None takes the data's own.

    Raises:
        InvalidInput: an option is out of range.
    """

    bibtex: ClassVar[str] = """
@inproceedings{guo2022bounding,
  title = {Bounding Training Data Reconstruction in Private (Deep) Learning},
  author = {Guo, Chuan and Karrer, Brian and Chaudhuri, Kamalika and
            van der Maaten, Laurens},
  booktitle = {International Conference on Machine Learning}, year = {2022}
}
"""
    steps: int = 1
    diameter: float | None = None

    def __post_init__(self) -> None:
        check_training(self.steps)
        if self.diameter is not None and not 0 < self.diameter < math.inf:
            msg = f"diameter is {self.diameter}; expected a positive length"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a range of length 1."""
        return (cls(diameter=1.0),)

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | NotApplicable:
        """Evaluate it for a world's mechanism and range of data.

        Args:
            world: the evaluator's side; its private inputs are not used.
            prior: not used.
            key: calibrates the defenses as ``world.observe(key)`` does.
        """
        del prior
        found = guarantee_of(world, key, gaussian=True)
        if isinstance(found, NotApplicable):
            return found
        spec, size = world.batch.spec, len(world.batch)
        diameter = spec.peak if self.diameter is None else self.diameter
        if diameter is None:
            return NotApplicable("the data have no range; give the option diameter")
        renyi = gaussian_renyi_two(found.multiplier, self.steps, moved=2)
        per_coordinate = hammersley_chapman_robbins_bound(diameter, renyi)
        unknowns = size * spec.dimension
        return BoundValue(
            name="hammersley-chapman-robbins",
            total=unknowns * per_coordinate,
            standard_error=0.0,
            unknowns=unknowns,
            batch_size=size,
            assumptions=(
                *training_assumptions(found, self.steps),
                "The attack is unbiased at every possible input; one that shrinks "
                "towards a prior mean may fall below, and at little leakage the bound "
                "exceeds the error of a constant guess.",
                f"Every coordinate ranges over an interval of length {diameter:g}.",
            ),
            reference="Guo et al., ICML 2022, theorem 1",
            binds=Binds.UNBIASED_ATTACKS,
            details={
                "renyi_two": renyi,
                "noise_multiplier": found.multiplier,
                "constant_guess": diameter**2 / 4,
            },
        )
