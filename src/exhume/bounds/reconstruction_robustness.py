"""Reconstruction robustness: the largest probability of a good reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from exhume.bounds.accounting import (
    MISSING_EXTRA,
    check_training,
    guarantee_of,
    missing_extra,
    training_assumptions,
    type_two_error,
)
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.batch import Batch
from exhume.problem.bound import Binds, Bound, NotApplicable, RiskValue
from exhume.problem.prior import Density
from exhume.problem.privacy import Guarantee
from exhume.problem.world import World

__all__ = [
    "ReconstructionRobustness",
    "chance_of_public_guess",
    "gaussian_reconstruction_risk",
    "log_chance_of_gaussian",
]

# Smallest probability that the trade-off curve is asked for; it rises with κ.
_LEAST = 1e-300
_PUBLIC = 2000  # public examples that guesses are made from
_KNOWLEDGE = (
    "κ has to include all that the attacker knows besides the release: labels, "
    "weights, public data, other pictures of the same person or a near copy. One who "
    "knows more than κ includes may succeed more often."
)


@formula(
    r"\gamma = \Phi\big( \Phi^{-1}(\kappa) + \sqrt T / \sigma \big)",
    reference="Hayes, Mahloujifar and Balle, NeurIPS 2023; Kaissis et al. 2023",
)
def gaussian_reconstruction_risk(log_chance: float, shift: float) -> float:
    """Return 1 − f(κ) for the trade-off curve f of the Gaussian mechanism.

    Args:
        log_chance: log κ ≤ 0, which may be far below what a float can exponentiate.
        shift: √T / σ ≥ 0.

    Returns:
        γ in [0, 1]; κ itself if the shift is 0.
    """
    from scipy.special import ndtr, ndtri_exp

    return float(ndtr(ndtri_exp(log_chance) + shift))


@formula(
    r"\log P\big( \tfrac1d \| x - c \|^2 \le \eta \big) \le \min_{s \ge 0}\; "
    r"s d \eta - \tfrac12 \sum_i \log (1 + 2 s \lambda_i)",
    reference="Anderson 1955 (no guess c beats the mean); Chernoff 1952",
)
def log_chance_of_gaussian(
    variances: NDArray[np.float64], multiplicities: NDArray[np.float64], radius: float
) -> float:
    """Bound the chance that a guess without data comes close to a Gaussian draw.

    Args:
        variances: λ, distinct eigenvalues of the covariance of an example.
        multiplicities: how often each occurs; their sum is d.
        radius: η, mean squared error that counts as a success.

    Returns:
        An upper bound on log κ; 0 where the prior mean succeeds on average.
    """
    from scipy.optimize import brentq

    budget = float(multiplicities.sum()) * radius
    if budget >= float(multiplicities @ variances):
        return 0.0

    def slope(s: float) -> float:
        return budget - float(
            (multiplicities * variances / (1 + 2 * s * variances)).sum()
        )

    # At s = d / (2 budget) every term is below budget / d, so the slope has risen to 0.
    best: Any = brentq(
        slope, 0.0, float(multiplicities.sum()) / (2 * budget), xtol=1e-300
    )
    logs = multiplicities * np.log1p(2 * best * variances)
    return min(0.0, best * budget - float(logs.sum()) / 2)


@formula(
    r"\kappa \ge \sum_k \tfrac{n_k}{n} \max_{i \in k} \tfrac{1}{n_k - 1} "
    r"\#\{ j \in k,\, j \ne i : \tfrac1d \| x_i - x_j \|^2 \le \eta \}",
    reference="definition, of guesses among n public examples with the label k known",
)
def chance_of_public_guess(public: Batch, radius: float) -> float:
    """Return how often the best public example of a class comes close to the others.

    Args:
        public: examples; without classes all are of one.
        radius: η, mean squared error that counts as a success.
    """
    order = torch.randperm(len(public), generator=generator(0, "public-guess"))
    public = public.select(order[:_PUBLIC])
    targets, flat = public.targets, public.inputs.double().flatten(1)
    unlabelled = targets.is_floating_point() or targets.dim() > 1
    labels = torch.zeros(len(public)) if unlabelled else targets
    found = 0
    for label in labels.unique():
        own = flat[labels == label]
        close = torch.cdist(own, own).square() <= radius * own.shape[1]
        if len(own) > 1:
            best = int(close.sum(dim=1).max()) - 1
            found += len(own) * best / (len(own) - 1)
    return found / len(public)


@dataclass(frozen=True, kw_only=True)
class ReconstructionRobustness(Bound):
    """Attacks succeed with a probability of at most γ = 1 − f(κ).

    κ is the probability that the best guess without the release succeeds, by all that
    the attacker knows besides, and f the trade-off curve of the mechanism. Whoever
    knows more than κ includes may succeed more often. Success may be anything; with
    ``radius`` it is a mean squared error of at most η, and κ the larger of two: that of
    the Gaussian prior, given the labels, and that of guesses among public examples.

    Attributes:
        chance: κ in (0, 1); not used if ``radius`` is given.
        radius: η > 0, in squared units of the data, or None.
        steps: releases T that the attacker sees.
        sampling_rate: probability q that the unit takes part in a release.

    Raises:
        InvalidInput: an option is out of range.
    """

    bibtex: ClassVar[str] = """
@inproceedings{balle2022reconstructing,
  title = {Reconstructing Training Data with Informed Adversaries},
  author = {Balle, Borja and Cherubin, Giovanni and Hayes, Jamie},
  booktitle = {IEEE Symposium on Security and Privacy}, year = {2022}
}
@inproceedings{hayes2023bounding,
  title = {Bounding Training Data Reconstruction in {DP-SGD}},
  author = {Hayes, Jamie and Mahloujifar, Saeed and Balle, Borja},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2023}
}
@misc{kaissis2023bounding,
  title = {Bounding Data Reconstruction Attacks with the Hypothesis Testing
           Interpretation of Differential Privacy},
  author = {Kaissis, Georgios and Hayes, Jamie and Ziller, Alexander and
            Rueckert, Daniel},
  year = {2023}, eprint = {2307.03928}, archivePrefix = {arXiv}
}
@inproceedings{kulynych2024attack,
  title = {Attack-Aware Noise Calibration for Differential Privacy},
  author = {Kulynych, Bogdan and Gomez, Juan Felipe and Kaissis, Georgios and
            du Pin Calmon, Flavio and Troncoso, Carmela},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2024}
}
"""
    chance: float = 0.01
    radius: float | None = None
    steps: int = 1
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        check_training(self.steps, self.sampling_rate)
        if not 0 < self.chance < 1:
            msg = f"chance is {self.chance}; expected a probability in (0, 1)"
            raise InvalidInput(msg)
        if self.radius is not None and not 0 < self.radius < math.inf:
            msg = f"radius is {self.radius}; expected a positive mean squared error"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a stated chance level, and the one of a radius."""
        return (cls(), cls(radius=0.1))

    def __call__(
        self, world: World, prior: Density | None = None, key: int = 0
    ) -> RiskValue | NotApplicable:
        """Evaluate it for a world's mechanism, and for its prior if η is given.

        Args:
            world: the evaluator's side; its private inputs are not used.
            prior: density of one example; the world's own if None.
            key: calibrates the defenses as ``world.observe(key)`` does.
        """
        found = guarantee_of(world, key)
        if isinstance(found, NotApplicable):
            return found
        density = world.prior if prior is None else prior
        log_chance = self._log_chance(density, world)
        if isinstance(log_chance, NotApplicable):
            return log_chance
        closed = found.family == "gaussian" and self.sampling_rate == 1
        if not closed and missing_extra():
            return NotApplicable(MISSING_EXTRA)
        return RiskValue(
            name="reconstruction-robustness",
            quantity="largest probability of success",
            value=self._risk(found, log_chance, closed=closed),
            standard_error=0.0,
            assumptions=(
                *training_assumptions(found, self.steps, self.sampling_rate),
                self._success(density),
                _KNOWLEDGE,
            ),
            reference="Hayes, Mahloujifar and Balle, NeurIPS 2023",
            binds=Binds.KNOWN_CHANCE,
            details={
                "chance": math.exp(log_chance),
                "log10_chance": log_chance / math.log(10),
                "noise_multiplier": found.multiplier,
                "steps": float(self.steps),
                "sampling_rate": self.sampling_rate,
                **({} if self.radius is None else {"radius": self.radius}),
            },
        )

    def _log_chance(
        self, density: Density | None, world: World
    ) -> float | NotApplicable:
        if self.radius is None:
            return math.log(self.chance)
        if not isinstance(density, GaussianDensity):
            return NotApplicable(
                "the chance of a guess within the radius is known for the prior "
                "'gaussian' only; use it, or give the option chance"
            )
        # The labels are known to the attacker: the spread within a class is left.
        labelled = density.given(world.batch.targets) is not None
        spread = density.within if labelled and density.within else density
        outside = spread.location.numel() - len(spread.variances)
        variances = [*spread.variances.tolist(), spread.floor]
        counts = [*[1.0] * len(spread.variances), float(outside)]
        found = log_chance_of_gaussian(
            np.asarray(variances), np.asarray(counts), self.radius
        )
        if world.public is None or len(world.public) < 2:
            return found
        guess = chance_of_public_guess(world.public, self.radius)
        return max(found, math.log(guess)) if guess > 0 else found

    def _risk(self, found: Guarantee, log_chance: float, *, closed: bool) -> float:
        if closed:
            shift = math.sqrt(self.steps) / found.multiplier
            return gaussian_reconstruction_risk(log_chance, shift)
        beta = type_two_error(
            found,
            max(math.exp(log_chance), _LEAST),
            steps=self.steps,
            sampling_rate=self.sampling_rate,
        )
        return min(1.0, 1 - beta)

    def _success(self, density: Density | None) -> str:
        if self.radius is None or density is None:
            return (
                f"Without the release no guess succeeds with a probability above "
                f"{self.chance:g}; that depends on the data and on what is a success."
            )
        return (
            f"A mean squared error of {self.radius:g} or less is a success. κ is the "
            f"larger of two chances: of the best guess for draws of the prior "
            f"{density.name!r} given the labels, from above, and of the best public "
            f"example for another of its class."
        )
