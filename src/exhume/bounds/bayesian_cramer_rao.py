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
from exhume.bounds.fisher import fisher_information
from exhume.bounds.regularity import information_maps
from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.bound import Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["BayesianCramerRao"]


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
        density = world.prior if prior is None else prior
        if density is None:
            return NotApplicable("no prior is given, so there is no average error")
        missing = {"information", "sample"} - density.supports
        if missing:
            return NotApplicable(
                f"the prior {density.name!r} has no {' and no '.join(sorted(missing))};"
                f" the prior 'gaussian' has"
            )
        batches = [
            density.sample(len(world.batch), fold(key, "bound", draw)).to(
                device=world.task.device, dtype=torch.float64
            )
            for draw in range(self.draws)
        ]
        maps = information_maps(world, batches, key)
        if isinstance(maps, NotApplicable):
            return maps
        informations = [
            fisher_information(whitened, None, x)
            for whitened, x in zip(maps, batches, strict=True)
        ]
        return _value(informations, density, batches[0].shape)


def _value(
    informations: list[Tensor], density: Density, shape: torch.Size
) -> BoundValue | NotApplicable:
    """Assemble the bound for inputs of a shape from the information at every draw."""
    batch_size = shape[0]
    fisher = sum(informations[1:], informations[0]) / len(informations)
    one_prior = density.information().to(fisher)
    prior = torch.block_diag(*[one_prior] * batch_size)
    try:
        plug_in, without = _with_leave_one_out(informations, fisher, prior)
    except InvalidInput as error:
        return NotApplicable(f"the noise is too weak: {error}")
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
        assumptions=_assumptions(density, batch_size),
        reference="van Trees 1968; Gill and Levit 1995",
        details=details | _unbiased(fisher) | _fit(density),
        per_coordinate=_per_coordinate(fisher + prior, shape),
    )


def _per_coordinate(information: Tensor, shape: torch.Size) -> Tensor:
    """Return the diagonal of (E J_F + J_P)⁻¹: each coordinate has its own bound."""
    return diagonal_of_inverse(information).reshape(shape)


def _with_leave_one_out(
    informations: list[Tensor], fisher: Tensor, prior: Tensor
) -> tuple[float, Tensor]:
    n = len(informations)
    without = [
        bayesian_cramer_rao_bound((n * fisher - one) / (n - 1), prior)
        for one in informations
    ]
    whole = bayesian_cramer_rao_bound(fisher, prior)
    return whole, torch.tensor(without, dtype=torch.float64)


def _assumptions(density: Density, batch_size: int) -> tuple[str, ...]:
    sentences = [
        f"The data follow the prior {density.name!r}: among densities of a given "
        f"covariance the Gaussian has the least information, so an attacker with a "
        f"sharper prior of real data may fall below.",
        "It bounds the mean over draws of data from the prior and over the noise, not "
        "the error on one fixed batch; draws may leave the range of real data.",
        "The labels, the weights and the defense are known to the attacker, and "
        "nothing else of the batch is (no BatchNorm statistics).",
        "The mean of the release is a continuous function of the data and "
        "differentiable almost everywhere (checked between draws of the prior).",
    ]
    if batch_size > 1:
        sentences.append(
            "It bounds the error in the order of the batch; an error over the best "
            "matching, which uses the truth, may be smaller."
        )
    return tuple(sentences)


def _unbiased(fisher: Tensor) -> dict[str, float]:
    """Return the bound for unbiased attacks, if there are any."""
    try:
        return {"unbiased": unbiased_cramer_rao_bound(fisher)}
    except InvalidInput:
        return {}


def _fit(density: Density) -> dict[str, float]:
    return {} if density.fit_check is None else {"prior_fit": density.fit_check}
