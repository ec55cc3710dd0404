"""Descent on the projected loss: Adam from random candidates, then quasi-Newton."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exhume.attacks.engine.candidates import (
    candidate_scores,
    merge_duplicates,
    weighted_mean,
)
from exhume.attacks.engine.tangent_features import TangentFeatures
from exhume.attacks.engine.tangent_view import TangentView, sharpness_schedule
from exhume.attacks.engine.variable_projection import (
    explained_residual,
    feature_weights,
    gauss_newton,
    projected_loss,
    self_blocks,
)
from exhume.attacks.unknowns import Unknowns
from exhume.problem.reconstruction import Stopwatch, TracePoint

__all__ = [
    "EXACT",
    "LEAST_RIDGE",
    "NEWTON_RIDGE",
    "POLISH_RIDGE",
    "SEARCH_RIDGE",
    "Explained",
    "ProjectionDescent",
    "explain",
]

#: residual at which an exact observation is explained
EXACT = 1e-13
#: ridge of Gauss–Newton, far below what an exact solution needs
NEWTON_RIDGE = 1e-11
#: ridge of the reported residual, which rounding needs
LEAST_RIDGE = 1e-9
#: ridge while many candidates compete: it asks for small weights
SEARCH_RIDGE = 1e-6
#: ridge while they are polished
POLISH_RIDGE = 1e-8
# The logarithm of the loss is taken above this; rounding is below.
_FLOOR = 1e-13
# Above this residual least squares would fit the errors of the model.
_NO_FIT = 0.03
# Stages in which the softplus sharpens, each with a model of its own.
_STAGES = 30
_DULL, _SHARP = 10.0, 200.0
# Candidates that correlate above the first of these that leaves enough are one.
_ALIKE = (0.9, 0.95, 0.98, 0.99, 0.999, math.inf)
_TRACE_POINTS = 100
# Quasi-Newton steps between two looks at the clock.
_PORTION = 25


@dataclass(frozen=True, eq=False)
class Explained:
    """How candidates explain an observation.

    Attributes:
        residual: ‖v − Σ a φ‖² / ‖v‖², the plain one.
        weights: a, shape [M, points · outputs].
        scores: energy that each candidate contributes, shape [M].
    """

    residual: float
    weights: Tensor
    scores: Tensor


def explain(
    features: TangentFeatures, inputs: Tensor, ridge: float = LEAST_RIDGE
) -> Explained:
    """Solve for the weights of given candidates.

    Args:
        features: with the observation.
        inputs: x, shape [M, *event].
        ridge: share of the mean diagonal of K.
    """
    with torch.no_grad():
        gram, moment = features.products(inputs)
        weights = feature_weights(gram, moment, ridge)
        residual = explained_residual(gram, moment, features.energy, weights)
        table = weights.reshape(len(inputs), -1)
        scores = candidate_scores(table, self_blocks(gram, len(inputs)))
    return Explained(residual, table, scores)


@dataclass(eq=False)
class ProjectionDescent:
    """Minimise log(projected loss) + w · box over candidates x = g(z) of one problem.

    The logarithm keeps gradients of one size while the loss falls by orders of
    magnitude, where the loss itself would leave Adam and L-BFGS standing.

    Attributes:
        view: the problem.
        unknowns: what z stands for.
        step_size: of Adam, in units of z.
        box: w, weight of the penalty outside of the range.
        deadline: CPU seconds of the watch after which nothing more is begun.
        watch: counts evaluations and time.
        trace: the projected loss over all phases.
        restart: number of the start, for the trace.
        steps: evaluations so far.
    """

    view: TangentView
    unknowns: Unknowns
    step_size: float
    box: float
    deadline: float
    watch: Stopwatch
    trace: list[TracePoint] = field(default_factory=list)
    restart: int = 0
    steps: int = 0

    def search(self, start: Tensor, iterations: int) -> Tensor:
        """Run Adam, the ReLUs smooth at first; its rate falls twice at the end.

        Args:
            start: z₀, shape [M, k].
            iterations: steps.
        """
        z = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=self.step_size)
        kinks, features = self.view.has_kinks, self.view.features()
        for i in range(iterations):
            share = i / iterations
            if (
                kinks
                and (i * _STAGES) // iterations != ((i - 1) * _STAGES) // iterations
            ):
                beta = sharpness_schedule(share, _DULL, _SHARP)
                features = self.view.features(beta)
            rate = 1.0 if share < 0.6 else 0.3 if share < 0.8 else 0.1
            optimiser.param_groups[0]["lr"] = self.step_size * rate
            value = float(self._evaluate(z, features, SEARCH_RIDGE, iterations))
            if not math.isfinite(value) or self.late:
                break
            optimiser.step()
            self._project(z)
        return self._sound(z, start)

    def polish(self, start: Tensor, iterations: int, ridge: float) -> Tensor:
        """Run L-BFGS with a line search.

        Args:
            start: z₀, shape [M, k].
            iterations: quasi-Newton steps.
            ridge: share of the mean diagonal of K.
        """
        z = start.clone().requires_grad_()
        sharp = _SHARP if self.view.has_kinks else None
        features = self.view.features(sharp)
        optimiser = torch.optim.LBFGS(
            [z],
            max_iter=_PORTION,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        for _ in range(math.ceil(iterations / _PORTION)):
            if self.late:
                break
            optimiser.step(lambda: self._evaluate(z, features, ridge, iterations))
            self._project(z)
        return self._sound(z, start)

    def refine(self, start: Tensor, iterations: int, inner_iterations: int) -> Tensor:
        """Run Gauss–Newton, kinks as they are, where the model fits at all.

        Args:
            start: z₀, shape [M, k].
            iterations: steps at most.
            inner_iterations: conjugate-gradient products per step.
        """
        features = self.view.features()
        fit = explain(features, self.unknowns.inputs([start]), POLISH_RIDGE)
        if fit.residual > _NO_FIT or iterations == 0 or self.late:
            return start
        found, course = gauss_newton(
            features,
            self.unknowns,
            start,
            fit.weights.flatten(),
            ridge=NEWTON_RIDGE,
            iterations=iterations,
            inner_iterations=inner_iterations,
            seconds=self.deadline,
            tolerance=EXACT,
            watch=self.watch,
        )
        for i, seconds, value in course.trace:
            loss = max(2 * value / features.energy, 0.0)
            self.trace.append(TracePoint(self.restart, self.steps + i, seconds, loss))
        self.steps += len(course.trace)
        return self._sound(found, start)

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return self.watch.cpu_seconds >= self.deadline

    def reduced(self, z: Tensor, count: int, centre: Tensor) -> Tensor:
        """Merge duplicates and return the candidates that explain most, at most count.

        Args:
            z: shape [M, k].
            count: how many are wanted; fewer only if there are fewer candidates.
            centre: common to all examples, shape [*event].
        """
        inputs = self.unknowns.inputs([z])
        scores = explain(self.view.features(), inputs, SEARCH_RIDGE).scores
        groups: tuple[tuple[int, ...], ...] = ()
        for alike in _ALIKE:
            found = merge_duplicates(inputs, scores, centre=centre, threshold=alike)
            groups = found.members
            if len(groups) >= count:
                break
        return torch.stack([weighted_mean(z, scores, g) for g in groups[:count]])

    def _evaluate(
        self, z: Tensor, features: TangentFeatures, ridge: float, iterations: int
    ) -> Tensor:
        x = self.unknowns.inputs([z])
        gram, moment = features.products(x)
        loss = projected_loss(gram, moment, features.energy, ridge)
        value = torch.log(loss.abs() + _FLOOR)
        if self.box > 0:
            value = value + self.box * self.unknowns.outside(x)
        (z.grad,) = torch.autograd.grad(value, z)
        self.watch.count()
        if self.steps % max(1, iterations // _TRACE_POINTS) == 0:
            self._note(float(loss.detach()))
        self.steps += 1
        return value.detach()

    def _project(self, z: Tensor) -> None:
        with torch.no_grad():
            z.copy_(self.unknowns.relaxation.project(z))

    def _note(self, loss: float) -> None:
        if math.isfinite(loss):
            point = TracePoint(
                self.restart, self.steps, self.watch.cpu_seconds, max(loss, 0.0)
            )
            self.trace.append(point)

    @staticmethod
    def _sound(z: Tensor, start: Tensor) -> Tensor:
        found = z.detach()
        return found if bool(torch.isfinite(found).all()) else start
