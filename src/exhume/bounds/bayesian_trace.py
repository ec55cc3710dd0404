"""Trace form of the Bayesian Cramér-Rao bound: matrix-free, for any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from exhume.bounds.fisher import fisher_trace
from exhume.bounds.gaussian_setting import assumptions, fit_detail, prior_draws
from exhume.bounds.inequalities import jackknifed_trace_bound, trace_bound
from exhume.bounds.regularity import information_maps
from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.bound import Bound, BoundValue, NotApplicable
from exhume.problem.prior import Density
from exhume.problem.world import World

__all__ = ["BayesianTrace"]


@dataclass(frozen=True, kw_only=True)
class BayesianTrace(Bound):
    """q²/(E tr J_F + tr J_P), from sketches of the trace at draws of the prior.

    Never above ``bayesian-cramer-rao``, which inverts the matrix; equal to it where
    all directions are equally visible, and far below where a few are seen best.

    Attributes:
        draws: number n ≥ 2 of batches drawn from the prior.
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
        setting = prior_draws(world, prior, self.draws, key)
        if isinstance(setting, NotApplicable):
            return setting
        density, batches = setting
        maps = information_maps(world, batches, key, density)
        if isinstance(maps, NotApplicable):
            return maps
        sketches = [
            fisher_trace(
                m,
                None,
                x,
                probes=self.probes,
                key=fold(key, "probes", draw),
                single=True,
            )
            for draw, (m, x) in enumerate(zip(maps, batches, strict=True))
        ]
        traces = torch.tensor([s.value for s in sketches], dtype=torch.float64)
        count, unknowns = len(world.batch), batches[0].numel()
        own = count * float(density.information().trace())
        total, error = jackknifed_trace_bound(traces, own, unknowns)
        whole = float(traces.mean())
        sketch = torch.tensor([s.standard_error for s in sketches]).norm() / self.draws
        return BoundValue(
            name="bayesian-trace",
            total=max(total, 0.0),
            standard_error=error,
            unknowns=unknowns,
            batch_size=count,
            assumptions=assumptions(density, count),
            reference="van Trees 1968; Chen, Gursoy and Lei 2024",
            details={
                "fisher_trace": whole,
                "fisher_trace_error_of_sketch": float(sketch),
                "prior_trace": own,
                "draws": float(self.draws),
                "monte_carlo_bias": trace_bound(whole, own, unknowns) - total,
            }
            | fit_detail(density),
        )
