"""Bayes security of DP-SGD: how little membership inference gains, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from exhume.bounds.accounting import (
    Adjacency,
    check_training,
    guarantee_of,
    training_assumptions,
)
from exhume.formula import formula
from exhume.problem.bound import Binds, Bound, NotApplicable, RiskValue
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["BayesSecurity", "approximation_error", "bayes_security"]


@formula(
    r"\beta^* \approx 1 - \mathrm{erf}\Big( \frac{\Delta\, q \sqrt T}"
    r"{2 \sqrt 2\, \sigma} \Big),\quad \Delta = 2 \text{ or } 1",
    reference="Cherubin et al., USENIX Security 2024",
)
def bayes_security(
    multiplier: float, steps: int, sampling_rate: float, moved: int
) -> float:
    """Approximate 1 − the largest advantage of a membership test.

    Args:
        multiplier: σ, noise over clipping norm.
        steps: T.
        sampling_rate: q; the value is exact at q = 1.
        moved: Δ, by how many sensitivities neighbours differ: 2 if a record is
            replaced, 1 if it is added or removed.

    Returns:
        β* in [0, 1]; 1 is perfectly secure.
    """
    shift = moved * sampling_rate * math.sqrt(steps) / multiplier
    return math.erfc(shift / (2 * math.sqrt(2)))


@formula(
    r"\frac{\sqrt{T (q - q^2)}}{2 \sigma}",
    reference="Cherubin et al., USENIX Security 2024, official code",
)
def approximation_error(multiplier: float, steps: int, sampling_rate: float) -> float:
    """Bound what the closed form neglects; above β* it says nothing strictly.

    Args:
        multiplier: σ.
        steps: T.
        sampling_rate: q.
    """
    variance = sampling_rate - sampling_rate**2
    return math.sqrt(steps * variance) / (2 * multiplier)


@dataclass(frozen=True, kw_only=True)
class BayesSecurity(Bound):
    """Largest advantage 1 − β*, true minus false positives, of a membership test.

    With sampling it is an approximation whose error term, in ``details``, usually
    exceeds it; without sampling it is exact.

    Attributes:
        steps: releases T that the attacker sees.
        sampling_rate: probability q that the unit takes part in a release.
        adjacency: whether one record is replaced, or added or removed.

    Raises:
        InvalidInput: an option is out of range.
    """

    bibtex: ClassVar[str] = """
@inproceedings{cherubin2024closed,
  title = {Closed-Form Bounds for {DP-SGD} against Record-level Inference},
  author = {Cherubin, Giovanni and K{\\"o}pf, Boris and Paverd, Andrew and
            Tople, Shruti and Wutschitz, Lukas and Zanella-B{\\'e}guelin, Santiago},
  booktitle = {USENIX Security Symposium}, year = {2024}
}
"""
    steps: int = 1
    sampling_rate: float = 1.0
    adjacency: Adjacency = "replace"

    def __post_init__(self) -> None:
        check_training(self.steps, self.sampling_rate, self.adjacency)

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> RiskValue | NotApplicable:
        """Evaluate it for a world's mechanism; no data and no prior are used.

        Args:
            world: the evaluator's side.
            prior: not used.
            key: calibrates the defenses as ``world.observe(key)`` does.
        """
        del prior
        found = guarantee_of(world, key, gaussian=True)
        if isinstance(found, NotApplicable):
            return found
        z, q = found.multiplier, self.sampling_rate
        moved = 2 if self.adjacency == "replace" else 1
        security = bayes_security(z, self.steps, q, moved)
        return RiskValue(
            name="bayes-security",
            quantity="largest advantage of a membership test",
            value=1 - security,
            standard_error=0.0,
            assumptions=(
                *training_assumptions(found, self.steps, q),
                f"Neighbours: {self.adjacency} one.",
                "It is about membership; who cannot be told apart from another cannot "
                "be reconstructed either, but not the other way round.",
            ),
            reference="Cherubin et al., USENIX Security 2024",
            binds=Binds.EVERY_ATTACK if q == 1 else Binds.NOBODY,
            details={
                "bayes_security": security,
                "noise_multiplier": z,
                "steps": float(self.steps),
                "sampling_rate": q,
                "approximation_error": approximation_error(z, self.steps, q),
            },
        )
