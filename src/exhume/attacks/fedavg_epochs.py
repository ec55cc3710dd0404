"""Epochs apart: every epoch has its own unknowns, tied by what no order changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor

from exhume.attacks.engine.adam import Adam
from exhume.attacks.engine.driver import Design, Limits, MatchingAttack
from exhume.attacks.engine.epochs import (
    Invariant,
    OrderInvariance,
    PerCopy,
    fuse_epochs,
    random_kernel,
    starts_of_copies,
)
from exhume.attacks.engine.local_steps import (
    LocalSteps,
    local_steps,
    schedule_notes,
)
from exhume.attacks.engine.objective import make_objective, mean_total_variation
from exhume.attacks.engine.restart import Restart
from exhume.attacks.engine.rounds import not_lost
from exhume.attacks.engine.start import StartKind, drawn_variable
from exhume.attacks.unknowns import (
    InferredLabels,
    RelaxationChoice,
    Unknowns,
    fit_relaxation,
    resolve_targets,
)
from exhume.config import chosen
from exhume.keys import generator
from exhume.observations.update import Update
from exhume.problem.attack import check_options
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.prior import Density
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)
from exhume.problem.relaxation import Units

__all__ = ["FedavgEpochs"]


@dataclass(frozen=True, kw_only=True)
class FedavgEpochs(MatchingAttack):
    """Dimitrov et al. (TMLR 2022): unrolled training on examples of each epoch's own.

    Nobody knows which examples met in which step, but every epoch visits all of them.
    So the examples of each epoch are unknowns X_e of their own in a guessed order, and
    only what no order changes ties them: the prior (w/E²) Σ_ab ‖g(X_a) − g(X_b)‖²/d
    with g the mean over the examples. At the end the copies are matched by optimal
    assignment among equal labels and averaged. The objective that is reported, and
    picks the restart, is that of equal copies.

    Deviations:
        * Four copies at most, shared by neighbouring epochs; the paper has one per
          epoch, which costs no time but leaves more unknowns per equation.
        * 1 − cos + 0.1 relative squared error, as in ``unrolled``; the paper weighs
          the squared error of layers by powers of e.
        * The copies start from the answer of ``surrogate-model``, and the range is kept
          by clamping; the paper starts from noise and penalises what leaves the range.
        * The convolution is rectified: a linear one has no mean that the mean does
          not have.
        * Labels that are not known are counted from the bias (``bias-corrected``).

    Attributes:
        copies: of the examples, at most one per epoch.
        invariance: w, weight of the prior that ties them, for a range of 1.
        invariant: g, the ``mean`` of the examples or of a rectified random
            ``convolution`` (images only).
        iterations: Adam steps per restart.
        restarts: random starts; the one with the smallest objective wins.
        seconds: CPU seconds over all restarts; None for no limit.
        start: kind of start; ``surrogate`` is the same for all copies.
        labels: for labels that are not known: ``bias-corrected``, ``idlg`` (both fall
            back on ``joint``) or ``joint``.
        relaxation: what is varied, x = g(z): ``projection``, ``box``, ``identity`` or
            any other relaxation, by name, with options, or as an object.
        total_variation: α, weight of the total variation; 0 leaves it out.
        step_size: of Adam, in normalised units.
        patience: iterations without progress that end a restart in the last eighth.
        stall: progress lowers the objective by more than this fraction.
    """

    copies: int = 4
    invariance: float = 1.0
    invariant: Invariant = "mean"
    iterations: int = 300
    restarts: int = 1
    seconds: float | None = None
    start: StartKind = "surrogate"
    labels: InferredLabels = "bias-corrected"
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation", formerly="parametrisation")
    )
    total_variation: float = 0.001
    step_size: float = 0.2
    patience: int = 100
    stall: float = 1e-4

    bibtex: ClassVar[str] = """
@article{dimitrov2022data,
  title = {Data Leakage in Federated Averaging},
  author = {Dimitrov, Dimitar I. and Balunovi{\\'c}, Mislav and Konstantinov, Nikola
            and Vechev, Martin},
  journal = {Transactions on Machine Learning Research},
  year = {2022}
}
"""

    def __post_init__(self) -> None:
        check_options(
            at_least_one={
                "copies": self.copies,
                "iterations": self.iterations,
                "restarts": self.restarts,
                "patience": self.patience,
            },
            positive={"seconds": self.seconds, "step_size": self.step_size},
            not_negative={
                "invariance": self.invariance,
                "total_variation": self.total_variation,
            },
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (cls(iterations=2), cls())

    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""
        units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
        size: int = problem.require(Fact.BATCH_SIZE)
        smooth, notes = mean_total_variation(problem, self.total_variation)
        priors = (*(PerCopy(of=p, size=size) for p in smooth), *self._tie(problem))
        plain = make_objective(problem, "cosine-and-length", priors=priors)
        return Design(
            objective=local_steps(plain, size, copies=self.copies),
            relaxation=fit_relaxation(self.relaxation, problem, units),
            solver=Adam(step_size=self.step_size, schedule="cosine"),
            limits=Limits(
                iterations=self.iterations,
                restarts=self.restarts,
                seconds=self.seconds,
                patience=self.patience,
                stall=self.stall,
            ),
            start=self.start,
            labels=(self.labels, "joint"),
            notes=notes,
        )

    def _tie(self, problem: Problem) -> tuple[Density, ...]:
        """Return the prior that ties the copies, if there are several."""
        model, spec = problem.require(Fact.LOCAL_SCHEDULE), problem.spec
        several = isinstance(model, Update) and min(self.copies, model.epochs) > 1
        if not several or self.invariance == 0:
            return ()
        kernel = None
        if self.invariant == "convolution" and spec.grid is not None:
            kernel = random_kernel(spec.shape[0], 0)
        weight = self.invariance / (spec.peak or 1.0) ** 2
        size: int = problem.require(Fact.BATCH_SIZE)
        return (OrderInvariance(weight=weight, size=size, kernel=kernel),)

    def run_from(
        self, problem: Problem, key: int, inputs: Tensor | None
    ) -> Reconstruction:
        """Reconstruct with an explicit first start of all copies, shape [B, *event]."""
        watch, design = Stopwatch(), self.design(problem)
        size: int = problem.require(Fact.BATCH_SIZE)
        fixed, label_notes = resolve_targets(problem, design.labels, size)
        task = design.objective.task
        unknowns = Unknowns.of(task, problem.spec, design.relaxation, fixed)
        best: tuple[float, Tensor, Tensor, Outcome] | None = None
        trace: list[TracePoint] = []
        for index in range(self.restarts):
            if best is not None and self._left(watch) <= 0:
                break
            given = inputs if index == 0 else None
            restart = self._restart(problem, design, unknowns, key, index, given, watch)
            trace += restart.trace
            copies = unknowns.inputs(restart.best).detach()
            copies = copies.reshape(-1, size, *problem.spec.shape)
            targets = restart.answer().targets
            fused = unknowns.harden(fuse_epochs(copies, targets))
            value = design.objective.value(fused, targets)
            watch.count()
            outcome = restart.outcome
            assert outcome is not None  # every run has been finished
            if restart.best_value < restart.trace[0].objective:
                outcome = not_lost(outcome)
            if best is None or not best[0] <= value:
                best = (value, fused, targets, outcome)
        assert best is not None  # restarts ≥ 1
        value, fused, targets, outcome = best
        schedule = schedule_notes(design.objective, fused, targets)
        return Reconstruction(
            inputs=fused,
            targets=targets,
            objective=value if math.isfinite(value) else None,
            outcome=outcome,
            cost=watch.cost(),
            trace=tuple(trace),
            adaptive=problem.law_is_used,
            notes=(*design.notes, *label_notes, *schedule),
        )

    def _restart(
        self,
        problem: Problem,
        design: Design,
        unknowns: Unknowns,
        key: int,
        index: int,
        given: Tensor | None,
        watch: Stopwatch,
    ) -> Restart:
        """Return a restart that has ended."""
        random = generator(key, "restart", index)
        objective = design.objective
        count = objective.copies if isinstance(objective, LocalSteps) else 1
        size: int = problem.require(Fact.BATCH_SIZE)
        z = None
        if given is None:
            z = drawn_variable(design.relaxation, self.start, count * size, random)
        if z is None:
            copies = starts_of_copies(problem, self.start, count, given, random)
            z = design.relaxation.encode(copies)
        z = z.to(device=objective.task.device, dtype=objective.task.dtype)
        # The copies share their labels.
        _, *labels = unknowns.leaves(z[:size], random)
        restart = Restart(
            index,
            objective,
            unknowns,
            [z, *labels],
            design.solver,
            design.limits,
            watch,
            random,
        )
        deadline = watch.cpu_seconds + self._left(watch) / (self.restarts - index)
        while restart.outcome is None:
            restart.advance()
            if watch.cpu_seconds >= deadline:
                break
        restart.finish(Outcome.TIME_LIMIT)
        return restart

    def _left(self, watch: Stopwatch) -> float:
        return math.inf if self.seconds is None else self.seconds - watch.cpu_seconds
