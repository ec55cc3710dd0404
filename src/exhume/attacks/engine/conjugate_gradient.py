"""Truncated conjugate gradients for the damped normal equations of Gauss–Newton."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["conjugate_gradient"]


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
