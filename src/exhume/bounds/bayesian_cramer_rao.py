"""Bayesian Cramér-Rao (van Trees) bound: no attack has a smaller mean squared error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.bounds.fisher import MeanMap
from exhume.bounds.gaussian_setting import (
    PriorSetting,
    assumptions,
    fit_detail,
    prior_setting,
)
from exhume.bounds.held_out import (
    HELD_OUT,
    HeldOut,
    checked_average,
    held_out_ratio,
    powers,
    random_signs,
    spread_of_trace,
)
from exhume.bounds.inequalities import trace_of_inverse
from exhume.bounds.mean_information import (
    InformationSums,
    MeanInformation,
    invert_mean_information,
    summed,
)
from exhume.bounds.monte_carlo import (
    jackknife,
    jackknifed_diagonal,
    jackknifed_trace_bound,
    pareto_shape,
)
from exhume.bounds.regularity import information_map_at
from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.bound import Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["BayesianCramerRao"]


@dataclass(frozen=True, kw_only=True)
class BayesianCramerRao(Bound):
    """Average the Fisher information over draws of the prior, and invert.

    At least 8 draws are taken, and more until the standard error is below 5 % of the
    bound: up to 64, or 512 where unknowns are few. Draws that are held out give that
    error and check the average with a few derivatives each: there is no number where
    rare draws carry most of the information, or where it is significantly too large.

    Attributes:
        draws: number n ≥ 2 of batches drawn from the prior to begin with.

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
        setting = prior_setting(world, prior, key)
        if isinstance(setting, NotApplicable):
            return setting
        at = information_map_at(world, setting.batches(2), key, setting.density)
        if isinstance(at, NotApplicable):
            return at
        average = _Average(setting, at)
        try:
            return checked_average(
                self.draws, len(average.prior), average.estimate, average.check
            )
        except InvalidInput as error:
            return NotApplicable(f"the noise is too weak: {error}")


class _Average:
    """The mean information of draws of the prior, inverted."""

    def __init__(self, setting: PriorSetting, at: Callable[[Tensor], MeanMap]) -> None:
        self.setting, self.at = setting, at
        self.prior = torch.block_diag(*[setting.information()] * setting.size)
        self.sums: InformationSums | None = None
        self.found: MeanInformation | None = None

    def estimate(self, count: int) -> BoundValue:
        """Return the bound from so many draws, twice as many as before."""
        batches = self.setting.batches(count)
        self.sums, self.found = invert_mean_information(
            self.at, batches, self.prior, self.setting.key, self.sums
        )
        return _value(self.found, self.setting)

    def check(self) -> HeldOut:
        """Compare the last estimate with fresh draws x, by zᵀ W J_F(x) W z."""
        assert self.found is not None
        key, factor = fold(self.setting.key, "held-out"), self.found.factor

        def tilt(rows: Tensor) -> Tensor:
            return torch.cholesky_solve(rows.T.to(factor), factor).T.to(rows)

        points = self.setting.sample(HELD_OUT, key)
        signs = random_signs(points, key).flatten(1)
        tilted = tilt(signs)
        seen = powers(self.at, points, tilted.reshape(points.shape))
        seen = seen + ((tilted @ self.prior) * tilted).sum(dim=1)
        claimed = (signs * tilted).sum(dim=1)
        ratio, error = held_out_ratio(claimed, seen)
        return HeldOut(
            plug_in=float(self.found.diagonal.sum()),
            ratio=ratio,
            error=error,
            shape=pareto_shape(seen / claimed),
            spread=spread_of_trace(self.at, points, tilt, fold(key, "probes")),
        )


def _value(found: MeanInformation, setting: PriorSetting) -> BoundValue:
    """Assemble the bound.

    Args:
        found: of all draws.
        setting: the prior.
    """
    information, size = setting.information(), setting.size
    plug_in = float(found.diagonal.sum())
    corrected, error = jackknife(plug_in, summed(found.without))
    groups = found.traces.reshape(-1, len(found.without)).mean(dim=0)
    weaker, _ = jackknifed_trace_bound(
        groups, size * float(information.trace()), len(found.diagonal)
    )
    details = {
        "trace_bound": weaker,
        "prior_variance": size * trace_of_inverse(information),
        "draws": float(len(found.traces)),
        "monte_carlo_bias": plug_in - corrected,
    }
    total = max(corrected, weaker, 0.0)
    own = jackknifed_diagonal(found.diagonal, found.without, total)
    return BoundValue(
        name="bayesian-cramer-rao",
        total=total,
        standard_error=error,
        unknowns=len(found.diagonal),
        batch_size=size,
        assumptions=assumptions(setting.density, size),
        reference="van Trees 1968; Gill and Levit 1995",
        details=details | fit_detail(setting.density),
        # (E J_F + J_P)⁻¹ bounds each coordinate on its own.
        per_coordinate=own.reshape(setting.shape),
    )
