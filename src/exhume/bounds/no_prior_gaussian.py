"""What an attacker without a prior makes of a clipped, noisy release."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from exhume.bounds.accounting import (
    check_training,
    guarantee_of,
    training_assumptions,
)
from exhume.bounds.monte_carlo import average
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold
from exhume.problem.bound import Binds, Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.privacy import Guarantee
from exhume.problem.world import World

__all__ = ["NoPriorGaussian", "mean_estimation_error", "mean_estimation_success"]


@formula(
    r"E\, \tfrac1N \| \hat X - X \|^2 = \sigma^2 \| X \|^2,\quad "
    r"\hat X \sim \mathcal N(X, \sigma^2 \| X \|^2 I_N)",
    reference="Ziller et al., arXiv 2402.12861 (formula derived)",
)
def mean_estimation_error(multiplier: float, squared_norm: float) -> float:
    """Return the mean squared error per coordinate of an attacker without a prior.

    Args:
        multiplier: σ, noise over clipping norm.
        squared_norm: ‖X‖² of the secret, in squared units of the data.
    """
    return multiplier**2 * squared_norm


@formula(
    r"P(\mathrm{MSE} \le \eta) = P\Big( \frac N2,\; "
    r"\frac{\eta N}{2 \sigma^2 \| X \|^2} \Big)",
    reference="Ziller et al., arXiv 2402.12861 (formula derived); incomplete gamma",
)
def mean_estimation_success(radius: float, unknowns: int, expected: float) -> float:
    """Return the probability that the same attacker comes within a radius.

    Args:
        radius: η, mean squared error that counts as a success.
        unknowns: N.
        expected: σ² ‖X‖², the expected mean squared error.
    """
    from scipy.special import gammainc

    return float(gammainc(unknowns / 2, radius * unknowns / (2 * expected)))


@dataclass(frozen=True, kw_only=True)
class NoPriorGaussian(Bound):
    """Error of estimating a mean: the release is the secret, scaled to the clip norm.

    The private inputs are not used: ‖X‖² is its average over the prior, or over the
    public examples if there is no prior.

    Attributes:
        steps: releases T that the attacker averages.
        radius: mean squared error whose probability goes into ``details``, or None.
        draws: examples from the prior.

    Raises:
        InvalidInput: an option is out of range.
    """

    bibtex: ClassVar[str] = """
@misc{ziller2024reconciling,
  title = {Bounding Reconstruction Attack Success of Adversaries Without Data Priors},
  author = {Ziller, Alexander and Riess, Anneliese and Schwethelm, Kristian and
            Mueller, Tamara T. and Rueckert, Daniel and Kaissis, Georgios},
  year = {2024}, eprint = {2402.12861}, archivePrefix = {arXiv}
}
"""
    steps: int = 1
    radius: float | None = None
    draws: int = 256

    def __post_init__(self) -> None:
        check_training(self.steps)
        if self.radius is not None and not 0 < self.radius < math.inf:
            msg = f"radius is {self.radius}; expected a positive mean squared error"
            raise InvalidInput(msg)
        if self.draws < 2:
            msg = f"draws is {self.draws}; 2 or more are needed to state the error"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return the expected error, and the success within a radius."""
        return (cls(), cls(radius=0.1))

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> BoundValue | NotApplicable:
        """Evaluate it for a world's mechanism and the size of its examples.

        Args:
            world: the evaluator's side; its private inputs are not used.
            prior: density of one example; the world's own if None.
            key: calibrates the defenses as ``world.observe(key)`` does, and draws.
        """
        found = guarantee_of(world, key, gaussian=True)
        if isinstance(found, NotApplicable):
            return found
        squares = self._squared_norms(world, prior, key)
        if squares is None:
            return NotApplicable(
                "the size of an example is not known: give a prior that can be sampled "
                "or two public examples"
            )
        # A client's secret is its whole batch, clipped and inverted as one vector.
        together = len(world.batch) if found.unit == "client" else 1
        norm, spread = (together * v for v in average(squares))
        per_norm = mean_estimation_error(found.multiplier / self.steps**0.5, 1.0)
        return self._value(found, world, per_norm * norm, per_norm * spread)

    def _value(
        self, found: Guarantee, world: World, error: float, spread: float
    ) -> BoundValue:
        dimension, size = world.batch.spec.dimension, len(world.batch)
        unknowns = size * dimension
        secret = unknowns if found.unit == "client" else dimension
        details = {"noise_multiplier": found.multiplier, "steps": float(self.steps)}
        if self.radius is not None:
            success = mean_estimation_success(self.radius, secret, error)
            details |= {"radius": self.radius, "success": success}
        return BoundValue(
            name="no-prior-gaussian",
            total=unknowns * error,
            standard_error=unknowns * spread,
            unknowns=unknowns,
            batch_size=size,
            assumptions=(
                *training_assumptions(found, self.steps),
                "The attacker chose the model, so that the gradient of the secret is "
                "the secret itself up to scale, and is clipped.",
                "The attacker has no prior: not even the range or the mean of the "
                "data; one who shrinks the estimate does better.",
                "‖X‖² is an average over the prior or over public examples.",
            ),
            reference="Ziller et al., arXiv 2402.12861",
            binds=Binds.NO_PRIOR,
            details=details,
        )

    def _squared_norms(
        self, world: World, prior: Density | None, key: int
    ) -> torch.Tensor | None:
        """Return ‖x‖² of some examples that are not private."""
        density = world.prior if prior is None else prior
        if density is not None and "sample" in density.supports:
            examples = density.sample(self.draws, fold(key, "bound"))
        elif world.public is not None and len(world.public) > 1:
            examples = world.public.inputs
        else:
            return None
        return examples.double().flatten(1).square().sum(dim=1)
