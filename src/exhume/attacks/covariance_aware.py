"""Maximum a posteriori with a noise whose variance is a function of the candidate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.attacks.engine.centre import centre
from exhume.attacks.engine.driver import check_options
from exhume.attacks.engine.levenberg_marquardt import (
    Descent,
    Limits,
    levenberg_marquardt,
)
from exhume.attacks.engine.map_residual import release_weights
from exhume.attacks.engine.start import initial
from exhume.attacks.engine.variance_residual import VarianceResidual
from exhume.keys import fold, generator
from exhume.problem.attack import Attack
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)

__all__ = ["CovarianceAware"]

# Caps of the precision, from a problem without gaps to the problem itself.
_CAPS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
_STALL = 1e-6


@dataclass(frozen=True, kw_only=True)
class CovarianceAware(Attack):
    """Maximise log p(O | x) + log p(x) where the noise itself tells about x.

    Minimises Ψ(x) = Σ (O − g(x))²/2v(x) + ½ Σ log v(x) − log p(x) by Fisher scoring:
    damped steps with the curvature JᵀV⁻¹J + ½ (∇log v)ᵀ(∇log v). Strong noise hides
    g but not v, because log v only shifts. Descents start at random points (draws of
    the prior, if it has any); each first caps the variance, and lifts the cap step by
    step. The smallest Ψ wins. Not applicable where v does not depend on the data: use
    ``gauss-newton``.

    Attributes:
        iterations: steps per descent and cap.
        inner_iterations: conjugate-gradient products per step.
        evaluations: model gradients over all restarts; a derivative of v counts as one.
        restarts: descents at most; the first starts at the given point, if there is
            one, without caps.
        prior: use the prior of the problem if there is one.
    """

    iterations: int = 30
    inner_iterations: int = 50
    evaluations: int = 20_000
    restarts: int = 6
    prior: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.WEIGHTS,
            Fact.LOCAL_SCHEDULE,
            Fact.BATCH_SIZE,
            Fact.LABELS,
            Fact.DEFENSE,
        }
    )
    uses: ClassVar[frozenset[Fact]] = frozenset({Fact.PRIOR, Fact.PUBLIC_DATA})
    bibtex: ClassVar[str] = """
@book{kay1993fundamentals,
  title = {Fundamentals of Statistical Signal Processing: Estimation Theory},
  author = {Kay, Steven M.},
  publisher = {Prentice Hall},
  year = {1993}
}
"""

    def __post_init__(self) -> None:
        check_options(
            at_least_one={
                "iterations": self.iterations,
                "inner_iterations": self.inner_iterations,
                "evaluations": self.evaluations,
                "restarts": self.restarts,
            },
            positive={},
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a short run: few problems have such a noise."""
        return (cls(iterations=5, restarts=1),)

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Descend from every start and return the point with the smallest Ψ."""
        return self.run_from(problem, key, None)

    def run_from(
        self, problem: Problem, key: int, inputs: Tensor | None
    ) -> Reconstruction:
        """Run with an explicit first start x₀, shape [B, *event]."""
        watch = Stopwatch()
        residual = self._residual(problem, problem.require(Fact.LABELS))
        if residual is None:
            return _out_of_reach(problem, watch)
        best: Descent | None = None
        trace: list[TracePoint] = []
        for restart in range(self.restarts):
            given = inputs is not None and restart == 0
            start = inputs if given else self._start(problem, key, restart)
            assert start is not None
            point = start.double().reshape(-1)
            for cap in () if given else _CAPS:
                point = self._descend(replace(residual, cap=cap), point, watch).point
            descent = self._descend(residual, point, watch)
            trace += [TracePoint(restart, *row) for row in descent.trace]
            if best is None or descent.objective < best.objective:
                best = descent
            if watch.evaluations >= self.evaluations:
                break
        assert best is not None  # restarts ≥ 1
        return self._answer(problem, residual, best, trace, watch)

    def objective(
        self, problem: Problem, inputs: Tensor, targets: Tensor
    ) -> float | None:
        """Return Ψ at a candidate; None where v does not depend on the data."""
        residual = self._residual(problem, targets)
        if residual is None:
            return None
        return residual.objective(inputs.double().reshape(-1))

    def _residual(self, problem: Problem, targets: Tensor) -> VarianceResidual | None:
        law = problem.require(Fact.DEFENSE)
        if law.variance_at is None or law.not_gaussian is not None:
            return None
        observed = {n: t.double() for n, t in problem.observed.items()}
        weights = release_weights(problem.observed, law, torch.float64)
        floating = targets.is_floating_point()
        use_prior = self.prior and problem.prior is not UNKNOWN
        return VarianceResidual(
            task=problem.require(Fact.WEIGHTS).to(torch.float64),
            model=problem.require(Fact.LOCAL_SCHEDULE),
            law=law,
            observed=observed,
            fixed={
                n: (w.square().reciprocal() + torch.zeros_like(observed[n]))
                for n, w in weights.items()
            },
            spec=problem.spec,
            targets=targets.double() if floating else targets,
            prior=problem.require(Fact.PRIOR) if use_prior else None,
        )

    def _start(self, problem: Problem, key: int, restart: int) -> Tensor:
        count = problem.require(Fact.BATCH_SIZE)
        prior = problem.prior
        if self.prior and prior is not UNKNOWN and "sample" in prior.supports:
            return prior.sample(count, fold(key, "start", restart))
        return initial(problem, "normal", count, generator(key, "start", restart))

    def _descend(
        self, residual: VarianceResidual, start: Tensor, watch: Stopwatch
    ) -> Descent:
        limits = Limits(
            iterations=self.iterations,
            evaluations=self.evaluations,
            seconds=float("inf"),
            inner_iterations=self.inner_iterations,
            tolerance=-float("inf"),
            stall=_STALL,
        )
        return levenberg_marquardt(residual, start, limits, watch, residual.spec.clamp)

    def _answer(
        self,
        problem: Problem,
        residual: VarianceResidual,
        best: Descent,
        trace: list[TracePoint],
        watch: Stopwatch,
    ) -> Reconstruction:
        dtype = problem.require(Fact.WEIGHTS).dtype
        inputs = residual.inputs(best.point).detach().to(dtype)
        inputs = problem.spec.clamp(inputs)
        return Reconstruction(
            inputs=inputs,
            targets=residual.targets.to(problem.require(Fact.LABELS).dtype),
            objective=residual.objective(inputs.double().reshape(-1)),
            outcome=best.outcome,
            cost=watch.cost(),
            trace=tuple(trace),
            adaptive=True,
        )


def _out_of_reach(problem: Problem, watch: Stopwatch) -> Reconstruction:
    count = problem.require(Fact.BATCH_SIZE)
    return Reconstruction(
        inputs=centre(problem).expand(count, *problem.spec.shape).clone(),
        targets=problem.require(Fact.LABELS),
        objective=None,
        outcome=Outcome.NOT_APPLICABLE,
        cost=watch.cost(),
        notes=(
            "The variance of the noise does not depend on the data, or the noise is "
            "not Gaussian, so it tells nothing of its own; the answer is the prior "
            "mean. Use 'gauss-newton'.",
        ),
    )
