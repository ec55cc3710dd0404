"""Nonlinear least squares: maximum a posteriori by Levenberg–Marquardt (default)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.attacks.engine.levenberg_marquardt import (
    Descent,
    Limits,
    levenberg_marquardt,
)
from exhume.attacks.engine.map_residual import MapResidual, release_weights
from exhume.attacks.engine.start import StartKind, drawn_variable, initial
from exhume.attacks.relaxations.identity import InUnits
from exhume.attacks.unknowns import RelaxationChoice, Unknowns, fit_relaxation
from exhume.config import chosen
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.attack import Attack, check_options
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationKind
from exhume.problem.reconstruction import (
    Reconstruction,
    Stopwatch,
    TracePoint,
)
from exhume.problem.relaxation import Units

__all__ = ["GaussNewton"]

# Examples that start equal stay equal; this fraction of the range parts them.
_JITTER = 0.05
# Φ per coordinate at which an exact release is fitted to its rounding.
_EXACT = 0.01
# Relative blur of the observation, from rough to sharp.
_SOFTENING = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)

_UNEXPLAINED = (
    "The answer does not explain the observation to its noise: the descent is caught "
    "in a local minimum or ended early, or weights, labels, mode or defense are not "
    "what the attack was told."
)


@dataclass(frozen=True, kw_only=True)
class GaussNewton(Attack):
    """Reconstruct by nonlinear least squares with the declared law and a prior.

    Minimises Φ(x) = ½‖Σ^{-1/2}(h(F(x)) − O)‖² − log p(x) over the range of an example
    by matrix-free Levenberg–Marquardt: Jacobian-vector and vector-Jacobian products
    inside conjugate gradients. h and Σ come from the defense; where the release is
    exact, Σ is the rounding of each tensor, so that every tensor counts alike; where
    the noise was scaled or selected afterwards (noise, then clipping), Σ is believed up
    to one factor. Unknown labels are inferred from the bias gradient, or optimised as
    logits together with x and then fixed to their argmax; unknown real targets are
    optimised as they are. Where the client draws randomness inside of its model (the
    latent noise of a variational bottleneck), that is one more unknown.

    Attributes:
        iterations: Levenberg–Marquardt steps per descent.
        inner_iterations: conjugate-gradient products per step.
        evaluations: model gradients over all restarts; unlike a time budget it gives
            the same bits on every machine.
        restarts: descents at most. They end as soon as one fits the observation to its
            noise; the second softens the observation first and sharpens it step by
            step (the first does so too where observations are scarce), the others do
            so from random points. The smallest Φ wins.
        seconds: CPU seconds over all restarts; None for no limit.
        start: ``prior-mean``, or any other kind of ``attacks.engine.start``.
        labels: ``auto`` (known, else ``bias-corrected``, else ``joint``), or one of
            these strategies for labels that are not known.
        prior: use the prior of the problem if there is one.
        precision: of the computation; float64 costs twice as much and recovers more.
        stall: stop when a step lowers Φ by less than this fraction.
        relaxation: what is varied, x = g(z), by name, with options, or as an object;
            ``projection`` keeps x itself inside of its range.

    References:
        Levenberg (1944); Marquardt (1963). For gradient inversion: ours.
    """

    iterations: int = 100
    inner_iterations: int = 300
    evaluations: int = 40_000
    restarts: int = 3
    seconds: float | None = None
    start: StartKind = "prior-mean"
    labels: Literal["auto", "idlg", "bias-corrected", "joint"] = "auto"
    prior: bool = True
    precision: Literal["float32", "float64"] = "float64"
    stall: float = 1e-7
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation")
    )

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.LABELS,
            Fact.LEARNING_RATE,
            Fact.BATCH_ORDER,
            Fact.DEFENSE,
            Fact.PRIOR,
            Fact.PUBLIC_DATA,
        }
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset({"gradient", "update"})
    bibtex: ClassVar[str] = """
@article{levenberg1944method,
  title = {A Method for the Solution of Certain Non-Linear Problems in Least Squares},
  author = {Levenberg, Kenneth},
  journal = {Quarterly of Applied Mathematics},
  volume = {2},
  number = {2},
  pages = {164--168},
  year = {1944}
}
@article{marquardt1963algorithm,
  title = {An Algorithm for Least-Squares Estimation of Nonlinear Parameters},
  author = {Marquardt, Donald W.},
  journal = {Journal of the Society for Industrial and Applied Mathematics},
  volume = {11},
  number = {2},
  pages = {431--441},
  year = {1963}
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
            positive={"seconds": self.seconds},
            not_negative={"stall": self.stall},
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(iterations=2, inner_iterations=5, restarts=1),
            cls(iterations=10, inner_iterations=50),
        )

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Descend from every start and return the point with the smallest Φ."""
        return self.run_from(problem, key, None)

    def run_from(
        self, problem: Problem, key: int, inputs: Tensor | None
    ) -> Reconstruction:
        """Run with an explicit first start x₀, shape [B, *event]."""
        watch = Stopwatch()
        unknowns, notes = self._unknowns(problem)
        residual = self._residual(problem, unknowns)
        best: Descent | None = None
        trace: list[TracePoint] = []
        for restart in range(self.restarts):
            x0 = self._start(problem, residual, key, restart, inputs)
            if restart > 0 or residual.scarce:
                x0 = self._soften(residual, x0, watch)
            descent = self._descend(residual, x0, watch)
            trace += [TracePoint(restart, *row) for row in descent.trace]
            if best is None or descent.objective < best.objective:
                best = descent
            if residual.fitted(best.point) or self._spent(watch):
                break
        assert best is not None  # restarts ≥ 1
        return self._answer(problem, residual, best, trace, watch, notes)

    def objective(self, problem: Problem, inputs: Tensor, targets: Tensor) -> float:
        """Return Φ at a candidate."""
        dtype = getattr(torch, self.precision)
        labels = targets.to(dtype) if targets.is_floating_point() else targets
        at_inputs = Unknowns(InUnits(problem.spec, Units()), problem.spec, labels)
        residual = self._residual(problem, at_inputs)
        return residual.objective_at(Candidate(inputs.to(dtype), labels))

    def _spent(self, watch: Stopwatch) -> bool:
        late = self.seconds is not None and watch.cpu_seconds >= self.seconds
        return late or watch.evaluations >= self.evaluations

    def _soften(self, residual: MapResidual, start: Tensor, watch: Stopwatch) -> Tensor:
        """Follow the minimiser from a blurred observation to the sharp one.

        With little confidence in O the prior and the linear part of F dominate, and
        the descent cannot be caught by the wrinkles of F far from the solution.
        """
        point = start
        for level in _SOFTENING:
            blurred = residual.softened(level)
            rough = replace(self, iterations=15, stall=1e-2)
            point = rough._descend(blurred, point, watch).point
        return point

    def _descend(
        self, residual: MapResidual, start: Tensor, watch: Stopwatch
    ) -> Descent:
        limits = Limits(
            iterations=self.iterations,
            evaluations=self.evaluations,
            seconds=math.inf if self.seconds is None else self.seconds,
            inner_iterations=self.inner_iterations,
            # Below the rounding of an exact release there is nothing left to fit.
            tolerance=-math.inf if residual.law.noisy else _EXACT * residual.freedom,
            stall=self.stall,
        )
        project = residual.unknowns.project
        return levenberg_marquardt(residual, start, limits, watch, project)

    def _unknowns(self, problem: Problem) -> tuple[Unknowns, tuple[str, ...]]:
        """Return what is looked for, and where labels that are not known come from."""
        task = problem.require(Fact.WEIGHTS).to(getattr(torch, self.precision))
        count: int = problem.require(Fact.BATCH_SIZE)
        targets, notes = self._labels(problem, count)
        if targets is not None and targets.is_floating_point():
            targets = targets.to(task.dtype)
        relaxation = fit_relaxation(self.relaxation, problem, Units())
        hidden = problem.require(Fact.LOCAL_SCHEDULE).hidden(count)
        return Unknowns.of(task, problem.spec, relaxation, targets, hidden), notes

    def _residual(self, problem: Problem, unknowns: Unknowns) -> MapResidual:
        """Assemble Φ from what the problem tells."""
        dtype = getattr(torch, self.precision)
        law = Law() if problem.law is UNKNOWN else problem.law.for_descent
        return MapResidual(
            task=problem.require(Fact.WEIGHTS).to(dtype),
            model=problem.require(Fact.LOCAL_SCHEDULE),
            law=law,
            observed={n: t.to(dtype) for n, t in problem.observed.items()},
            weights=release_weights(problem.observed, law, dtype),
            unknowns=unknowns,
            batch_size=problem.require(Fact.BATCH_SIZE),
            prior=problem.prior
            if self.prior and problem.prior is not UNKNOWN
            else None,
            scale_known=law.not_gaussian is None or not law.noisy,
        )

    def _labels(
        self, problem: Problem, count: int
    ) -> tuple[Tensor | None, tuple[str, ...]]:
        """Return labels and a note, or None to optimise them."""
        if problem.targets is not UNKNOWN:
            return problem.targets, ()
        from exhume.attacks.engine.labels import recover_labels

        if self.labels == "joint":
            return None, ("The labels were optimised together with the inputs.",)
        strategy = "bias-corrected" if self.labels == "auto" else self.labels
        try:
            labels = recover_labels(problem, strategy, count)
        except InvalidInput as error:
            if self.labels != "auto":
                raise
            return None, (f"The labels were optimised, because {error}.",)
        return labels, (f"The labels were inferred ({strategy}).",)

    def _start(
        self,
        problem: Problem,
        residual: MapResidual,
        key: int,
        restart: int,
        inputs: Tensor | None,
    ) -> Tensor:
        """Return u₀ of a restart: the chosen start first, random ones after it."""
        random = generator(key, "start", restart)
        unknowns, dtype = residual.unknowns, residual.task.dtype
        if restart <= 1 and inputs is not None:
            z = unknowns.relaxation.encode(inputs.to(dtype))
        else:
            kind = self.start if restart <= 1 else "uniform"
            z = self._drawn(problem, residual, kind, random)
        return unknowns.flat(unknowns.leaves(z, random))

    def _drawn(
        self,
        problem: Problem,
        residual: MapResidual,
        kind: str,
        random: torch.Generator,
    ) -> Tensor:
        """Return z of a start, in the precision of the computation."""
        relaxation, count = residual.unknowns.relaxation, residual.batch_size
        like = next(iter(residual.observed.values()))
        drawn = drawn_variable(relaxation, kind, count, random)
        if drawn is not None:
            return drawn.to(like)
        x0 = initial(problem, kind, count, random).to(like)
        if count > 1:
            width = problem.spec.peak or 1.0
            noise = torch.randn(x0.shape, generator=random, dtype=torch.float64)
            x0 = x0 + _JITTER * width * noise.to(x0)
        return relaxation.encode(x0)

    def _answer(
        self,
        problem: Problem,
        residual: MapResidual,
        best: Descent,
        trace: list[TracePoint],
        watch: Stopwatch,
        notes: tuple[str, ...],
    ) -> Reconstruction:
        unknowns = residual.unknowns
        if unknowns.outputs and unknowns.classes:
            # The answer is a class, so Φ is refined and reported with classes.
            return self._refined(problem, residual, best, trace, watch, notes)
        found = unknowns.answer(best.point)
        dtype = problem.require(Fact.WEIGHTS).dtype
        inputs = unknowns.harden(found.inputs.to(dtype))
        if residual.scale_known and not residual.fitted(best.point):
            notes = (*notes, _UNEXPLAINED)
        at_answer = replace(found, inputs=inputs.to(best.point.dtype))
        return Reconstruction(
            inputs=inputs,
            targets=found.targets,
            objective=residual.objective_at(at_answer),
            outcome=best.outcome,
            cost=watch.cost(),
            trace=tuple(trace),
            adaptive=problem.law_is_used,
            notes=notes,
        )

    def _refined(
        self,
        problem: Problem,
        residual: MapResidual,
        best: Descent,
        trace: list[TracePoint],
        watch: Stopwatch,
        notes: tuple[str, ...],
    ) -> Reconstruction:
        """Fix optimised labels to their argmax and descend once more."""
        unknowns = residual.unknowns
        classes = unknowns.answer(best.point).targets
        known = replace(unknowns, targets=classes, outputs=0)
        fixed = replace(residual, unknowns=known)
        start = known.flat(known.leaves(unknowns.split(best.point)[0]))
        again = self._descend(fixed, start, watch)
        trace += [TracePoint(trace[-1].restart, *row) for row in again.trace[1:]]
        return self._answer(problem, fixed, again, trace, watch, notes)
