"""Matrix-free Levenberg–Marquardt on a box, for the MAP objective of an observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exhume.attacks.engine.map_residual import Linearisation
from exhume.problem.reconstruction import Outcome, Stopwatch

__all__ = [
    "Descent",
    "LeastSquares",
    "Limits",
    "conjugate_gradient",
    "levenberg_marquardt",
]

# Acceptance and damping constants of Nocedal and Wright, Numerical Optimization, ch. 4.
_ACCEPT = 1e-4
_GOOD, _POOR = 0.75, 0.25
_SHRINK, _GROW = 0.2, 4.0
# A rejected step of fewer units of rounding than this leads nowhere.
_STILL = 16
_DAMPING_START, _DAMPING_LEAST, _DAMPING_MOST = 1e-2, 1e-15, 1e12


class LeastSquares(Protocol):
    """A function with a positive semi-definite model of its curvature."""

    def objective(self, unknown: Tensor) -> float:
        """Return Φ(u)."""
        ...

    def linearise(self, unknown: Tensor) -> Linearisation:
        """Return ∇Φ and products with the curvature at u."""
        ...


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        iterations: accepted or rejected steps at most.
        evaluations: model gradients since the stopwatch began, at most.
        seconds: CPU seconds since the stopwatch began, at most; infinite for none.
        inner_iterations: products per linear solve at most.
        tolerance: stop when Φ falls below this value.
        stall: stop when a step lowers Φ by less than this fraction.
    """

    iterations: int
    evaluations: int
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
    problem: LeastSquares,
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
    state = _State(point, problem.objective(point))
    watch.count()
    trace = [(0, watch.cpu_seconds, state.value)]
    outcome = _reason_to_stop(state, limits, watch)
    for iteration in range(1, limits.iterations + 1):
        if outcome is not None:
            break
        if state.model is None:
            _linearise(problem, state, watch)
        accepted = _try_step(problem, state, limits, watch, project)
        if accepted:
            trace.append((iteration, watch.cpu_seconds, state.value))
        outcome = _reason_to_stop(state, limits, watch)
    return Descent(
        state.point, state.value, outcome or Outcome.ITERATION_LIMIT, tuple(trace)
    )


@dataclass
class _State:
    """Where a descent stands; ``model`` is None after every accepted step."""

    point: Tensor
    value: float
    damping: float = _DAMPING_START
    scale: float = 1.0
    first_slope: float = 0.0
    model: Linearisation | None = None
    ended: bool = False


def _reason_to_stop(state: _State, limits: Limits, watch: Stopwatch) -> Outcome | None:
    if not math.isfinite(state.value):
        return Outcome.DIVERGED
    if state.value <= limits.tolerance:
        return Outcome.TOLERANCE
    if state.ended:
        return Outcome.CONVERGED
    if watch.evaluations >= limits.evaluations:
        return Outcome.ITERATION_LIMIT
    if watch.cpu_seconds >= limits.seconds:
        return Outcome.TIME_LIMIT
    return None


def _linearise(problem: LeastSquares, state: _State, watch: Stopwatch) -> None:
    state.model = problem.linearise(state.point)
    state.scale = _mean_curvature(state.model, state.point)
    watch.count(5)
    if state.first_slope == 0.0:
        state.first_slope = float(state.model.gradient.norm())


def _try_step(
    problem: LeastSquares,
    state: _State,
    limits: Limits,
    watch: Stopwatch,
    project: Callable[[Tensor], Tensor],
) -> bool:
    """Take one damped step if it lowers Φ as predicted; adapt the damping."""
    model = state.model
    assert model is not None
    candidate = project(state.point + _step(state, limits, watch, project))
    moved = candidate - state.point
    change = model.gradient.dot(moved) + 0.5 * moved.dot(model.product(moved))
    predicted, value = -float(change), problem.objective(candidate)
    watch.count(3)
    gain = state.value - value
    ratio = gain / predicted if predicted > 0 else -1.0
    if not (math.isfinite(value) and ratio > _ACCEPT and gain > 0):
        state.damping *= _GROW
        unit = torch.finfo(moved.dtype).eps
        still = float(moved.norm()) <= _STILL * unit * float(1 + state.point.norm())
        state.ended = still or state.damping > _DAMPING_MOST
        return False
    state.ended = gain <= limits.stall * abs(state.value)
    state.point, state.value, state.model = candidate, value, None
    if ratio > _GOOD:
        state.damping = max(state.damping * _SHRINK, _DAMPING_LEAST)
    elif ratio < _POOR:
        state.damping *= 2
    return True


def _step(
    state: _State,
    limits: Limits,
    watch: Stopwatch,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """Solve the damped Gauss–Newton system on the free coordinates."""
    model = state.model
    assert model is not None
    free = _free(state.point, model.gradient, project)
    slope = torch.where(free, model.gradient, 0)
    damping = state.damping * state.scale

    def product(v: Tensor) -> Tensor:
        return torch.where(free, model.product(v), 0) + damping * v

    # Eisenstat–Walker: solve loosely far from the minimum, tightly close to it.
    decrease = float(slope.norm()) / max(state.first_slope, 1e-300)
    step, products = conjugate_gradient(
        product,
        -slope,
        relative_tolerance=min(0.1, max(1e-8, math.sqrt(decrease))),
        max_iterations=limits.inner_iterations,
    )
    watch.count(2 * products)
    return step


def _free(
    point: Tensor, gradient: Tensor, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mark the coordinates that a small descent step would not push out of the box."""
    # The probe is larger than rounding and smaller than any step that matters.
    probe = torch.finfo(point.dtype).eps ** 0.5 * torch.sign(gradient)
    return project(point - probe) != point


def _mean_curvature(model: Linearisation, point: Tensor) -> float:
    """Estimate tr(JᵀJ + H)/q with one probe, so that λ is free of units."""
    generator = torch.Generator(device=point.device).manual_seed(0)
    signs = torch.randint(0, 2, point.shape, generator=generator, device=point.device)
    probe = (2 * signs - 1).to(point.dtype)
    return max(float(probe.dot(model.product(probe))) / point.numel(), 1e-300)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    *,
    relative_tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, int]:
    """Solve A δ = b for a symmetric positive definite A known by its products.

    Stops at ‖Aδ − b‖ ≤ tolerance · ‖b‖. A truncated answer is still a
    descent direction, which is all that Levenberg–Marquardt asks for.

    Args:
        product: v ↦ A v.
        target: b, shape [q].
        relative_tolerance: in (0, 1).
        max_iterations: products at most.

    Returns:
        δ, shape [q], and the number of products taken.

    References:
        Hestenes and Stiefel (1952); Steihaug (1983) for the truncation.
    """
    solution = target.new_zeros(target.shape)
    residual = target.clone()
    direction, energy = residual.clone(), residual.dot(residual)
    goal = relative_tolerance**2 * energy
    for iteration in range(1, max_iterations + 1):
        image = product(direction)
        curvature = direction.dot(image)
        if not curvature > 0:  # rounding has eaten the damping, or NaN
            return solution, iteration
        step = energy / curvature
        solution += step * direction
        residual -= step * image
        previous, energy = energy, residual.dot(residual)
        if energy <= goal:
            return solution, iteration
        direction = residual + (energy / previous) * direction
    return solution, max_iterations
