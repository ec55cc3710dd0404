"""Descent on the projected loss: Adam from random candidates, then quasi-Newton."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exhume.attacks.engine.candidates import candidate_scores, merge_duplicates
from exhume.attacks.engine.tangent_features import TangentFeatures
from exhume.attacks.engine.tangent_newton import gauss_newton
from exhume.attacks.engine.tangent_view import TangentView
from exhume.attacks.engine.variable_projection import (
    explained_residual,
    feature_weights,
    projected_loss,
    self_blocks,
    sharpness_schedule,
)
from exhume.formula import formula
from exhume.problem.reconstruction import Stopwatch, TracePoint

__all__ = [
    "EXACT",
    "LEAST_RIDGE",
    "NEWTON_RIDGE",
    "POLISH_RIDGE",
    "SEARCH_RIDGE",
    "Explained",
    "ProjectionDescent",
    "box_penalty",
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


@formula(
    r"\sum (x - h)_+^2 + \sum (\ell - x)_+^2",
    reference="Haim et al., NeurIPS 2022; Loo et al., ICLR 2024 (code of the authors)",
)
def box_penalty(inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return how far inputs leave their range, summed squares.

    Args:
        inputs: x, shape [M, *event].
        low: ℓ, broadcastable.
        high: h, likewise.
    """
    above, below = torch.relu(inputs - high), torch.relu(low - inputs)
    return above.square().sum() + below.square().sum()


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
    """Minimise log(projected loss) + w · box over candidates of one problem.

    The logarithm keeps gradients of one size while the loss falls by orders of
    magnitude, where the loss itself would leave Adam and L-BFGS standing.

    Attributes:
        view: the problem.
        step_size: of Adam.
        box: w, weight of the penalty outside of the range.
        deadline: CPU seconds of the watch after which nothing more is begun.
        watch: counts evaluations and time.
        trace: the projected loss over all phases.
        restart: number of the start, for the trace.
        steps: evaluations so far.
    """

    view: TangentView
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
            start: x₀, shape [M, *event].
            iterations: steps.
        """
        x = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=self.step_size)
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
            value = self._gradient(x, features, SEARCH_RIDGE, iterations)
            if not math.isfinite(value) or self.late:
                break
            optimiser.step()
        return self._sound(x, start)

    def polish(self, start: Tensor, iterations: int, ridge: float) -> Tensor:
        """Run L-BFGS with a line search.

        Args:
            start: x₀, shape [M, *event].
            iterations: quasi-Newton steps.
            ridge: share of the mean diagonal of K.
        """
        x = start.clone().requires_grad_()
        sharp = _SHARP if self.view.has_kinks else None
        features = self.view.features(sharp)
        optimiser = torch.optim.LBFGS(
            [x],
            max_iter=_PORTION,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        for _ in range(math.ceil(iterations / _PORTION)):
            if self.late:
                break
            optimiser.step(lambda: self._evaluate(x, features, ridge, iterations))
        return self._sound(x, start)

    def refine(self, start: Tensor, iterations: int, inner_iterations: int) -> Tensor:
        """Run Gauss–Newton, kinks as they are, where the model fits at all.

        Args:
            start: x₀, shape [M, *event].
            iterations: steps at most.
            inner_iterations: conjugate-gradient products per step.
        """
        features = self.view.features()
        told = explain(features, start, POLISH_RIDGE)
        if told.residual > _NO_FIT or iterations == 0 or self.late:
            return start
        weights = told.weights.flatten()
        found, course = gauss_newton(
            features,
            start,
            weights,
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

    def reduced(self, inputs: Tensor, count: int, centre: Tensor) -> Tensor:
        """Merge duplicates and return the candidates that explain most, at most count.

        Args:
            inputs: x, shape [M, *event].
            count: how many are wanted; fewer only if there are fewer candidates.
            centre: common to all examples.
        """
        scores = explain(self.view.features(), inputs, SEARCH_RIDGE).scores
        found = None
        for alike in _ALIKE:
            found = merge_duplicates(inputs, scores, centre=centre, threshold=alike)
            if len(found.inputs) >= count:
                break
        assert found is not None
        return found.inputs[:count]

    def _evaluate(
        self, x: Tensor, features: TangentFeatures, ridge: float, iterations: int
    ) -> Tensor:
        gram, moment = features.products(x)
        loss = projected_loss(gram, moment, features.energy, ridge)
        value = torch.log(loss.abs() + _FLOOR)
        where = self.view.region
        if where is not None and self.box > 0:
            low, high = where.low.to(x), where.high.to(x)
            value = value + self.box * box_penalty(where.seen(x), low, high)
        (x.grad,) = torch.autograd.grad(value, x)
        self.watch.count()
        if self.steps % max(1, iterations // _TRACE_POINTS) == 0:
            self._note(float(loss.detach()))
        self.steps += 1
        return value.detach()

    def _gradient(
        self, x: Tensor, features: TangentFeatures, ridge: float, iterations: int
    ) -> float:
        return float(self._evaluate(x, features, ridge, iterations))

    def _note(self, loss: float) -> None:
        if math.isfinite(loss):
            point = TracePoint(
                self.restart, self.steps, self.watch.cpu_seconds, max(loss, 0.0)
            )
            self.trace.append(point)

    @staticmethod
    def _sound(x: Tensor, start: Tensor) -> Tensor:
        found = x.detach()
        return found if bool(torch.isfinite(found).all()) else start
