"""Trace form of the Bayesian Cramér-Rao bound: matrix-free, for any network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.bounds.fisher import MeanMap, deflated_powers, images
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
from exhume.bounds.inequalities import trace_bound
from exhume.bounds.monte_carlo import jackknifed_trace_bound, pareto_shape
from exhume.bounds.regularity import information_map_at
from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.bound import Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.tree import size
from exhume.problem.world import World

__all__ = ["BayesianTrace"]

_PROBES = 4  # directions that find how much the trace varies
_BYTES = 2**26  # of derivatives that are held at once


@dataclass(frozen=True, kw_only=True)
class BayesianTrace(Bound):
    """q²/(E tr J_F + tr J_P), from sketches of the trace at draws of the prior.

    Never above ``bayesian-cramer-rao``, which inverts the matrix; equal to it where
    all directions are equally visible, and far below where a few are seen best. More
    draws are taken, and others check them, as there.

    Attributes:
        draws: number n ≥ 2 of batches drawn from the prior to begin with.
        probes: random directions K ≥ 2 per draw, see ``fisher_trace``.

    Raises:
        InvalidInput: fewer than two draws or probes.
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
    probes: int = 4

    def __post_init__(self) -> None:
        for name, count in (("draws", self.draws), ("probes", self.probes)):
            if count < 2:
                msg = f"{name} is {count}; the bound needs 2 or more to state its error"
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
            key: calibrates the defenses as ``world.observe(key)`` does, draws from the
                prior and the directions.

        Returns:
            The bound, or the reason why there is none.
        """
        setting = prior_setting(world, prior, key)
        if isinstance(setting, NotApplicable):
            return setting
        at = information_map_at(world, setting.batches(2), key, setting.density)
        if isinstance(at, NotApplicable):
            return at
        average = _Average(setting, at, self.probes)
        return checked_average(
            self.draws, average.setting.shape.numel(), average.estimate, average.check
        )


class _Average:
    """The mean trace of draws of the prior."""

    def __init__(
        self, setting: PriorSetting, at: Callable[[Tensor], MeanMap], probes: int
    ) -> None:
        self.setting, self.at, self.probes = setting, at, probes
        self.prior = setting.size * float(setting.information().trace())
        self.powers = torch.empty(0, 1 + probes, dtype=torch.float64)

    def estimate(self, count: int) -> BoundValue:
        """Return the bound from so many draws."""
        points = self.setting.batches(count)[len(self.powers) :]
        signs = [
            random_signs(x.expand(self.probes, *x.shape), fold(self.setting.key, draw))
            for draw, x in enumerate(points, start=len(self.powers))
        ]
        pairs = [
            torch.cat([x.unsqueeze(0), z]) for x, z in zip(points, signs, strict=True)
        ]
        found = images(self._powers, torch.stack(pairs).float(), self._together())
        self.powers = torch.cat([self.powers, found.detach().double().cpu()])
        traces, sketch = self._traces()
        setting, unknowns = self.setting, self.setting.shape.numel()
        total, error = jackknifed_trace_bound(traces, self.prior, unknowns)
        whole = float(traces.mean())
        return BoundValue(
            name="bayesian-trace",
            total=max(total, 0.0),
            standard_error=error,
            unknowns=unknowns,
            batch_size=setting.size,
            assumptions=assumptions(setting.density, setting.size),
            reference="van Trees 1968; Chen, Gursoy and Lei 2024",
            details={
                "fisher_trace": whole,
                "fisher_trace_error_of_sketch": float(sketch.norm()) / count,
                "prior_trace": self.prior,
                "draws": float(count),
                "monte_carlo_bias": trace_bound(whole, self.prior, unknowns) - total,
            }
            | fit_detail(setting.density),
        )

    def check(self) -> HeldOut:
        """Compare the last estimate with fresh draws, for W ∝ I."""
        key = fold(self.setting.key, "held-out")
        points = self.setting.sample(HELD_OUT, key).float()
        signs = random_signs(points, key)
        seen = powers(self.at, points, signs).double().cpu() + self.prior
        traces, sketch = self._traces()
        whole = float(traces.mean()) + self.prior
        claimed = torch.full_like(seen, whole)
        ratio, error = held_out_ratio(claimed, seen)
        plug_in = trace_bound(whole, 0.0, self.setting.shape.numel())
        local = fold(key, "probes")
        spread = spread_of_trace(self.at, points, lambda z: z, local, probes=_PROBES)
        return HeldOut(
            plug_in=plug_in,
            ratio=ratio,
            error=error,
            shape=pareto_shape(seen),
            spread=plug_in * spread / whole,
            noise=plug_in * float(sketch.norm()) / len(sketch) / whole,
        )

    def _powers(self, pair: Tensor) -> Tensor:
        """Sketch the information at x, given x and the directions."""
        return deflated_powers(self.at(pair[0]), pair[0], pair[1:])

    def _together(self) -> int:
        """Return how many draws are sketched at once."""
        x = self.setting.batches(1)[0]
        return max(1, _BYTES // (4 * (2 + self.probes) * size(self.at(x)(x))))

    def _traces(self) -> tuple[Tensor, Tensor]:
        """Return tr J_F at every draw, and the standard errors of these sketches."""
        rest = self.powers[:, 1:]
        return self.powers[:, 0] + rest.mean(dim=1), rest.std(dim=1) / self.probes**0.5
