"""One restart of an optimisation attack: the current iterate and the best one seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.objective import Objective
from exhume.attacks.engine.solver import Solver
from exhume.attacks.unknowns import Unknowns
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import Outcome, Stopwatch, TracePoint

__all__ = ["Limits", "Restart"]

#: added to the objective of one restart: inputs → scalar
Pull = Callable[[Tensor], Tensor]

_TRACE_POINTS = 250


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop.

    Attributes:
        iterations: N per restart.
        restarts: R.
        seconds: CPU seconds over all restarts, or None.
        patience: iterations without progress after which a restart ends, counted from
            the last decay of the learning rate.
        stall: progress is a fall of the best objective by more than this fraction.
    """

    iterations: int
    restarts: int = 1
    seconds: float | None = None
    patience: int = 500
    stall: float = 1e-4


class Restart:
    """Iterate, remember the best point exactly as it was evaluated, know when to stop.

    Attributes:
        outcome: how it ended, or None while it runs.
        best_value: the smallest objective seen, without any pull.
        trace: the objective over the iterations, thinned.
    """

    def __init__(
        self,
        index: int,
        objective: Objective,
        unknowns: Unknowns,
        start: Sequence[Tensor],
        solver: Solver,
        limits: Limits,
        watch: Stopwatch,
        generator: torch.Generator,
    ) -> None:
        self.outcome: Outcome | None = None
        self.best_value = math.inf
        self.trace: list[TracePoint] = []
        self._index, self._watch, self._limits = index, watch, limits
        self._objective, self._unknowns = objective, unknowns
        self._leaves = [t.detach().clone().requires_grad_() for t in start]
        with torch.no_grad():
            first = unknowns.candidate(self._leaves)
            further = objective.begin(first.inputs, first.targets)
        self._further = [t.detach().clone().requires_grad_() for t in further]
        self._variables = [*self._leaves, *self._further]
        self._step = solver.begin(self._variables, limits.iterations, generator)
        self._settled = solver.settled_after(limits.iterations)
        self._stride = max(1, math.ceil((limits.iterations + 1) / _TRACE_POINTS))
        self._pull: Pull | None = None
        self._best = [v.detach().clone() for v in self._variables]
        self._iteration, self._first, self._current = 0, math.nan, math.nan
        self._mark, self._mark_at, self._fresh = math.inf, 0, False

    def inputs(self) -> Tensor:
        """Return the inputs of the current iterate."""
        return self._unknowns.inputs([leaf.detach() for leaf in self._leaves])

    @property
    def labels(self) -> Tensor | None:
        """Targets that do not change, or None."""
        return self._unknowns.targets

    @property
    def best(self) -> list[Tensor]:
        """The leaves of the best point."""
        return self._best[: len(self._leaves)]

    def advance(self, pull: Pull | None = None) -> None:
        """Take one iteration, and end the run where it is over.

        Args:
            pull: a further term for this iteration, which the best point ignores.
        """
        if self.outcome is not None:
            return
        self._pull, self._fresh = pull, True
        self._step(self._iteration, self._evaluate)
        z = self._leaves[0]
        with torch.no_grad():
            z.copy_(self._unknowns.relaxation.project(z))
        self._iteration += 1
        self.outcome = self._judge()

    def finish(self, outcome: Outcome) -> None:
        """End the run where it stands; evaluate the last iterate."""
        self.outcome = self.outcome or outcome
        self._fresh = True
        with torch.no_grad():
            self._look()
        if not self.trace or self.trace[-1].iteration != self._iteration:
            self._note()
        blown = not math.isfinite(self._current) or self._current > self._first
        if blown and self.outcome is not Outcome.TOLERANCE:
            self.outcome = Outcome.DIVERGED

    def answer(self) -> Candidate:
        """Return inputs, inside of their range, and targets of the best point."""
        return self._unknowns.answer(self.best)

    def _evaluate(self) -> Tensor:
        value = self._look()
        total = value
        if self._pull is not None:
            total = value + self._pull(self._unknowns.inputs(self._leaves))
        gradients = torch.autograd.grad(total, self._variables)
        for variable, gradient in zip(self._variables, gradients, strict=True):
            variable.grad = gradient
        return total.detach()

    def _look(self) -> Tensor:
        """Evaluate the objective where the variables are now, and remember it."""
        found = self._unknowns.candidate(self._leaves)
        value = self._objective(found.inputs, found.targets, self._further)
        self._watch.count()
        number = float(value.detach())
        if number < self.best_value:
            self.best_value = number
            self._best = [v.detach().clone() for v in self._variables]
        if self._fresh:
            # The first evaluation of an iteration is at the iterate itself; a line
            # search tries other points, which may be infinite without harm.
            self._fresh, self._current = False, number
            if self._iteration == 0:
                self._first = number
            if self._iteration % self._stride == 0:
                self._note()
        return value

    def _note(self) -> None:
        if not math.isfinite(self._current):
            return
        self.trace.append(
            TracePoint(
                self._index, self._iteration, self._watch.cpu_seconds, self._current
            )
        )

    def _judge(self) -> Outcome | None:
        if not math.isfinite(self._current):
            return Outcome.DIVERGED
        if self.best_value <= self._objective.floor:
            return Outcome.TOLERANCE
        if self._iteration >= self._limits.iterations:
            return Outcome.ITERATION_LIMIT
        improved = self._mark - self.best_value > self._limits.stall * abs(self._mark)
        if improved or math.isinf(self._mark) or self._iteration <= self._settled:
            self._mark, self._mark_at = self.best_value, self._iteration
        if self._iteration - self._mark_at >= self._limits.patience:
            return Outcome.CONVERGED
        return None
