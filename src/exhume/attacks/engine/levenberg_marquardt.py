"""Matrix-free Levenberg–Marquardt on a box, for the MAP objective of an observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.conjugate_gradient import conjugate_gradient
from exhume.attacks.engine.map_residual import Linearisation, MapResidual
from exhume.problem.reconstruction import Outcome, Stopwatch

__all__ = ["Descent", "Limits", "levenberg_marquardt"]

# Acceptance and damping constants of Nocedal and Wright, Numerical Optimization, ch. 4.
_ACCEPT = 1e-4
_GOOD, _POOR = 0.75, 0.25
_SHRINK, _GROW = 0.2, 4.0
# A rejected step shorter than this, relative to the point, is rounding.
_STILL = 1e-14
_DAMPING_START, _DAMPING_LEAST, _DAMPING_MOST = 1e-2, 1e-15, 1e12


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        iterations: accepted or rejected steps at most.
        seconds: CPU seconds at most; infinite for none.
        inner_iterations: products per linear solve at most.
        tolerance: stop when Φ falls below this value.
        stall: stop when a step lowers Φ by less than this fraction.
    """

    iterations: int
    seconds: float
    inner_iterations: int
    tolerance: float
    stall: float


@dataclass(frozen=True, eq=False)
class Descent:
    """Result of one descent: best point, its Φ, how it ended, the course of Φ."""

    point: Tensor
    objective: float
    outcome: Outcome
    trace: tuple[tuple[int, float, float], ...]


def levenberg_marquardt(
    problem: MapResidual,
    start: Tensor,
    limits: Limits,
    watch: Stopwatch,
    project: Callable[[Tensor], Tensor],
) -> Descent:
    """Minimise Φ(u) = ½‖r(u)‖² − log p from a start, inside a box.

    Each step solves (JᵀJ + H_prior + λI) δ = −∇Φ on the free coordinates by truncated
    conjugate gradients; coordinates at a bound whose gradient points outwards are held
    (Bertsekas 1982). λ follows the ratio of actual to predicted decrease.

    Args:
        problem: the objective.
        start: u₀, shape [q].
        limits: budgets and tolerances.
        watch: counts evaluations and time.
        project: Euclidean projection on the box.

    References:
        Levenberg (1944); Marquardt (1963); Nocedal and Wright (2006), ch. 4 and 10.
    """
    point = project(start)
    value = problem.objective(point)
    watch.count()
    begun, damping, first = watch.cpu_seconds, _DAMPING_START, math.inf
    trace = [(0, watch.cpu_seconds, value)]
    outcome = Outcome.DIVERGED if not math.isfinite(value) else Outcome.ITERATION_LIMIT
    model: Linearisation | None = None
    scale = 1.0
    for iteration in range(1, limits.iterations + 1):
        if not math.isfinite(value):
            break
        if value <= limits.tolerance:
            outcome = Outcome.TOLERANCE
            break
        if watch.cpu_seconds - begun > limits.seconds:
            outcome = Outcome.TIME_LIMIT
            break
        if model is None:
            model = problem.linearise(point)
            watch.count(3)
            scale = _mean_curvature(model, point, watch)
        free = _free(point, model.gradient, project)
        slope = torch.where(free, model.gradient, 0)
        first = min(first, float(slope.norm())) if math.isinf(first) else first
        step = _step(model, free, damping * scale, slope, first, limits, watch)
        candidate = project(point + step)
        moved = candidate - point
        predicted = -float(
            model.gradient.dot(moved) + 0.5 * moved.dot(model.product(moved))
        )
        trial = problem.objective(candidate)
        watch.count(3)
        ratio = (value - trial) / predicted if predicted > 0 else -1.0
        if math.isfinite(trial) and ratio > _ACCEPT and trial < value:
            stalled = value - trial <= limits.stall * abs(value)
            point, value, model = candidate, trial, None
            trace.append((iteration, watch.cpu_seconds, value))
            if ratio > _GOOD:
                damping = max(damping * _SHRINK, _DAMPING_LEAST)
            elif ratio < _POOR:
                damping *= 2
            if stalled:
                outcome = Outcome.CONVERGED
                break
        else:
            damping *= _GROW
            still = float(moved.norm()) <= _STILL * float(1 + point.norm())
            if damping > _DAMPING_MOST or still:
                outcome = Outcome.CONVERGED
                break
    return Descent(point, value, outcome, tuple(trace))


def _step(
    model: Linearisation,
    free: Tensor,
    damping: float,
    slope: Tensor,
    first: float,
    limits: Limits,
    watch: Stopwatch,
) -> Tensor:
    """Solve the damped Gauss–Newton system on the free coordinates."""

    def product(v: Tensor) -> Tensor:
        return torch.where(free, model.product(v), 0) + damping * v

    # Eisenstat–Walker: solve loosely far from the minimum, tightly close to it.
    forcing = min(0.1, max(1e-8, math.sqrt(float(slope.norm()) / max(first, 1e-300))))
    step, products = conjugate_gradient(
        product,
        -slope,
        precondition=lambda v: v,
        relative_tolerance=forcing,
        max_iterations=limits.inner_iterations,
    )
    watch.count(2 * products)
    return step


def _free(
    point: Tensor, gradient: Tensor, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mark the coordinates that a small descent step would not push out of the box."""
    # The probe is larger than rounding and smaller than any step that matters.
    probe = 1e-9 * torch.sign(gradient)
    return project(point - probe) != point


def _mean_curvature(model: Linearisation, point: Tensor, watch: Stopwatch) -> float:
    """Estimate tr(JᵀJ + H)/q with one probe, so that λ is free of units."""
    generator = torch.Generator(device=point.device).manual_seed(0)
    signs = torch.randint(0, 2, point.shape, generator=generator, device=point.device)
    probe = (2 * signs - 1).to(point.dtype)
    watch.count(2)
    return max(float(probe.dot(model.product(probe))) / point.numel(), 1e-300)
