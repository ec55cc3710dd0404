"""Bayesian Cramér-Rao (van Trees) bound: no attack has a smaller mean squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.bounds.gaussian_setting import assumptions, fit_detail, prior_draws
from exhume.bounds.inequalities import (
    jackknife,
    jackknifed_diagonal,
    jackknifed_trace_bound,
    trace_of_inverse,
)
from exhume.bounds.mean_information import (
    MeanInformation,
    invert_mean_information,
    summed,
)
from exhume.bounds.regularity import information_maps
from exhume.errors import InvalidInput
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

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return few draws."""
        return (cls(draws=4),)

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
        maps = information_maps(world, batches, key, density)
        if isinstance(maps, NotApplicable):
            return maps
        information = density.information().to(batches[0])
        own = torch.block_diag(*[information] * len(world.batch))
        try:
            found = invert_mean_information(maps, batches, own, key)
        except InvalidInput as error:
            return NotApplicable(f"the noise is too weak: {error}")
        return _value(found, information, density, batches[0].shape)


def _value(
    found: MeanInformation, information: Tensor, density: Density, shape: torch.Size
) -> BoundValue:
    """Assemble the bound for inputs of a shape.

    Args:
        found: of all draws.
        information: J_P of one example.
        density: the prior.
        shape: of the inputs, [B, *event].
    """
    batch_size, n = shape[0], len(found.traces)
    plug_in = float(found.diagonal.sum())
    corrected, error = jackknife(plug_in, summed(found.without))
    weaker, error_of_weaker = jackknifed_trace_bound(
        found.traces, batch_size * float(information.trace()), len(found.diagonal)
    )
    details = {
        "trace_bound": weaker,
        "prior_variance": batch_size * trace_of_inverse(information),
        "draws": float(n),
        "monte_carlo_bias": plug_in - corrected,
    }
    total = max(corrected, weaker, 0.0)
    own = jackknifed_diagonal(found.diagonal, found.without, total)
    return BoundValue(
        name="bayesian-cramer-rao",
        total=total,
        # The larger of two estimates errs at least like the noisier one.
        standard_error=max(error, error_of_weaker),
        unknowns=len(found.diagonal),
        batch_size=batch_size,
        assumptions=assumptions(density, batch_size),
        reference="van Trees 1968; Gill and Levit 1995",
        details=details | fit_detail(density),
        # (E J_F + J_P)⁻¹ bounds each coordinate on its own.
        per_coordinate=own.reshape(shape),
    )
