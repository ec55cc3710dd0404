"""Maximum a posteriori with a noise whose variance is a function of the candidate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.attacks.engine.levenberg_marquardt import (
    Descent,
    Limits,
    levenberg_marquardt,
)
from exhume.attacks.engine.map_residual import release_weights
from exhume.attacks.engine.start import centre, drawn_variable, initial
from exhume.attacks.engine.variance_residual import VarianceResidual
from exhume.attacks.relaxations.identity import InUnits
from exhume.attacks.unknowns import RelaxationChoice, Unknowns, fit_relaxation
from exhume.config import chosen
from exhume.keys import fold, generator
from exhume.problem.attack import Attack, check_options
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)
from exhume.problem.relaxation import Relaxation, Units

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
        relaxation: what is varied, x = g(z), by name, with options, or as an object;
            ``projection`` keeps x itself inside of its range.
    """

    iterations: int = 30
    inner_iterations: int = 50
    evaluations: int = 20_000
    restarts: int = 6
    prior: bool = True
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation")
    )

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
        if not _variance_is_private(problem):
            return _out_of_reach(problem, watch)
        relaxation = fit_relaxation(self.relaxation, problem, Units())
        residual = self._residual(problem, relaxation, problem.require(Fact.LABELS))
        unknowns = residual.unknowns
        best: Descent | None = None
        trace: list[TracePoint] = []
        for restart in range(self.restarts):
            given = inputs is not None and restart == 0
            if given:
                assert inputs is not None
                z = relaxation.encode(inputs.double())
            else:
                z = self._start(problem, relaxation, key, restart)
            point = unknowns.flat(unknowns.leaves(z))
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
        if not _variance_is_private(problem):
            return None
        spec = problem.spec
        residual = self._residual(problem, InUnits(spec, Units()), targets)
        labels = residual.unknowns.targets
        assert labels is not None
        return residual.objective_at(Candidate(inputs.double(), labels))

    def _residual(
        self, problem: Problem, relaxation: Relaxation, targets: Tensor
    ) -> VarianceResidual:
        law = problem.require(Fact.DEFENSE)
        observed = {n: t.double() for n, t in problem.observed.items()}
        weights = release_weights(problem.observed, law, torch.float64)
        labels = targets.double() if targets.is_floating_point() else targets
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
            unknowns=Unknowns(relaxation, problem.spec, labels),
            prior=problem.require(Fact.PRIOR) if use_prior else None,
        )

    def _start(
        self, problem: Problem, relaxation: Relaxation, key: int, restart: int
    ) -> Tensor:
        """Return z of a random start: of a draw of the prior if there are any."""
        count: int = problem.require(Fact.BATCH_SIZE)
        prior = problem.prior
        if self.prior and prior is not UNKNOWN and "sample" in prior.supports:
            x = prior.sample(count, fold(key, "start", restart))
            return relaxation.encode(x.double())
        random = generator(key, "start", restart)
        drawn = drawn_variable(relaxation, "normal", count, random)
        if drawn is not None:
            return drawn.to(problem.require(Fact.WEIGHTS).device)
        return relaxation.encode(initial(problem, "normal", count, random).double())

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
        project = residual.unknowns.project
        return levenberg_marquardt(residual, start, limits, watch, project)

    def _answer(
        self,
        problem: Problem,
        residual: VarianceResidual,
        best: Descent,
        trace: list[TracePoint],
        watch: Stopwatch,
    ) -> Reconstruction:
        dtype = problem.require(Fact.WEIGHTS).dtype
        found = residual.unknowns.answer(best.point)
        inputs = residual.unknowns.harden(found.inputs.to(dtype))
        return Reconstruction(
            inputs=inputs,
            targets=found.targets.to(problem.require(Fact.LABELS).dtype),
            objective=residual.objective_at(replace(found, inputs=inputs.double())),
            outcome=best.outcome,
            cost=watch.cost(),
            trace=tuple(trace),
            adaptive=True,
        )


def _variance_is_private(problem: Problem) -> bool:
    """Say whether the noise is Gaussian and its variance a function of the data."""
    law = problem.require(Fact.DEFENSE)
    return law.variance_at is not None and law.not_gaussian is None


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
