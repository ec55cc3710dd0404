"""Descent on candidates and multipliers together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from exhume.attacks.weights.fit import Fit
from exhume.observations.stationarity import nonnegative_multipliers
from exhume.problem.reconstruction import Outcome, Stopwatch, TracePoint
from exhume.problem.tree import flatten

__all__ = ["Cloud", "Solver", "StepRule", "descend", "start"]

StepRule = Literal["adam", "sgd"]

_MOMENTUM = 0.9
_TRACE_POINTS = 100
# A misfit this many times that of nothing at all ends the run.
_DIVERGED = 1e3


@dataclass(frozen=True, eq=False)
class Cloud:
    """Candidates of one start.

    Attributes:
        points: z, shape [M, k].
        multipliers: M λ, shape [M] or [M·K].
        targets: labels [M], or None.
        misfit: of the last iterate; infinite before the first.
        outcome: how the descent ended.
    """

    points: Tensor
    multipliers: Tensor
    targets: Tensor | None
    misfit: float = math.inf
    outcome: Outcome = Outcome.ITERATION_LIMIT


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How candidates move.

    Attributes:
        rule: ``adam`` with a rate that falls along a cosine, or ``sgd`` with momentum
            0.9 at a constant rate.
        rate: step size.
        iterations: steps.
        project: solve for λ ≥ 0 in every so many steps; 0 descends on λ too.
        deadline: CPU seconds of the watch at which to stop.
    """

    rule: StepRule
    rate: float
    iterations: int
    project: int = 0
    deadline: float = math.inf


def start(
    fit: Fit,
    targets: Tensor | None,
    count: int,
    outputs: int,
    spread: float,
    random: torch.Generator,
) -> Cloud:
    """Draw z and scale it by the spread, and M λ from U(0, 1) or N(0, 1)."""
    like, relaxation = next(iter(fit.weights.values())), fit.unknowns.relaxation
    points = relaxation.project(spread * relaxation.draw(random, count))
    if targets is None:
        drawn = torch.randn(count * outputs, generator=random, dtype=torch.float64)
    else:
        drawn = torch.rand(count, generator=random, dtype=torch.float64)
    return Cloud(points.to(like), drawn.to(like), targets)


def descend(
    fit: Fit,
    cloud: Cloud,
    solver: Solver,
    watch: Stopwatch,
    restart: int,
    trace: list[TracePoint],
) -> Cloud:
    """Return the cloud after the descent; the trace gets the misfit.

    Args:
        fit: what is minimised.
        cloud: where it starts.
        solver: step rule and budget.
        watch: counts evaluations.
        restart: number of the start, for the trace.
        trace: points are appended.
    """
    points = cloud.points.clone().requires_grad_()
    multipliers = cloud.multipliers.clone().requires_grad_(not solver.project)
    moving = [points] if solver.project else [points, multipliers]
    if solver.rule == "sgd":
        steps = torch.optim.SGD(moving, lr=solver.rate, momentum=_MOMENTUM)
    else:
        steps = torch.optim.Adam(moving, lr=solver.rate)
    stride = max(1, solver.iterations // _TRACE_POINTS)
    misfit, outcome = math.inf, Outcome.ITERATION_LIMIT
    for step in range(solver.iterations):
        if solver.rule == "adam":
            cosine = 0.5 * (1 + math.cos(math.pi * step / solver.iterations))
            steps.param_groups[0]["lr"] = solver.rate * cosine
        if solver.project and step % solver.project == 0:
            multipliers = _solved(fit, points.detach(), cloud.targets)
        total, left = fit.loss(points, cloud.targets, multipliers)
        found = torch.autograd.grad(total, moving)
        for variable, gradient in zip(moving, found, strict=True):
            variable.grad = gradient
        misfit = float(left.detach())
        watch.count()
        if step % stride == 0:
            seconds = watch.cpu_seconds
            trace.append(TracePoint(restart, step, seconds, misfit))
        if not math.isfinite(float(total.detach())) or misfit > _DIVERGED:
            outcome = Outcome.DIVERGED
            break
        steps.step()
        with torch.no_grad():
            points.copy_(fit.unknowns.relaxation.project(points))
        if watch.cpu_seconds >= solver.deadline:
            outcome = Outcome.TIME_LIMIT
            break
    sound = outcome is not Outcome.DIVERGED
    return replace(
        cloud,
        points=points.detach() if sound else cloud.points,
        multipliers=multipliers.detach() if sound else cloud.multipliers,
        misfit=misfit if sound else math.inf,
        outcome=outcome,
    )


def _solved(fit: Fit, points: Tensor, targets: Tensor | None) -> Tensor:
    """Return M λ with the best λ at these candidates (variable projection)."""
    rows = fit.rows(fit.inputs(points), targets)
    theta = flatten(fit.weights)
    if targets is None:
        found = torch.linalg.lstsq(rows.T, theta[:, None]).solution[:, 0]
    else:
        found = nonnegative_multipliers(rows @ rows.T, rows @ theta)
    return len(points) * found
