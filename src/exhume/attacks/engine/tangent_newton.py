"""Gauss–Newton with projected weights, from inner products of features alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.candidates import candidate_scores
from exhume.attacks.engine.levenberg_marquardt import (
    Descent,
    Limits,
    levenberg_marquardt,
)
from exhume.attacks.engine.map_residual import Linearisation
from exhume.attacks.engine.tangent_features import TangentFeatures
from exhume.attacks.engine.variable_projection import (
    feature_weights,
    ridge_factor,
    self_blocks,
)
from exhume.attacks.unknowns import Unknowns
from exhume.formula import formula
from exhume.problem.reconstruction import Stopwatch

__all__ = ["ProjectedFit", "gauss_newton", "half_residual"]

# Below this share of the strongest, an effect is taken as that.
_WEAK, _TINY = 1e-3, 1e-300


@formula(
    r"\tfrac12 \Big\lVert v - \sum_r a_r \phi_r(x) \Big\rVert^2 ="
    r" \tfrac12 \lVert v \rVert^2 - a^\top c + \tfrac12 a^\top K a",
    reference="definition",
)
def half_residual(
    gram: Tensor, moment: Tensor, energy: float, weights: Tensor
) -> Tensor:
    """Return half of the squared residual of features with given weights.

    Args:
        gram: K, shape [R, R].
        moment: c, shape [R].
        energy: ‖v‖².
        weights: a, shape [R].
    """
    return 0.5 * energy - weights.dot(moment) + 0.5 * weights.dot(gram @ weights)


@dataclass(frozen=True, eq=False)
class ProjectedFit:
    """½ min_a ‖v − Σ a φ(x)‖² and its curvature, for ``levenberg_marquardt``.

    The curvature is that of Kaufman (1975): with J and Φ the derivatives of the
    residual in x and a, JᵀJ − JᵀΦ(ΦᵀΦ)⁻¹ΦᵀJ. Products with it are mixed second
    derivatives of aᵀK(x, z)b at z = x, b = a, so that neither J nor any vector as long
    as Θ appears.

    Attributes:
        features: with the observation.
        unknowns: what z stands for.
        unit: what z is divided by, one number per example, shape [M, 1].
        ridge: share of the mean diagonal of K.
    """

    features: TangentFeatures
    unknowns: Unknowns
    unit: Tensor
    ridge: float

    def variable(self, unknown: Tensor) -> Tensor:
        """Return z, shape [M, k]."""
        return self.unit * unknown.reshape(len(self.unit), -1)

    def inputs(self, unknown: Tensor) -> Tensor:
        """Return x, shape [M, *event]."""
        return self.unknowns.inputs([self.variable(unknown)])

    def project(self, unknown: Tensor) -> Tensor:
        """Return the nearest feasible unknown."""
        z = self.variable(unknown)
        inside = self.unknowns.relaxation.project(z)
        return unknown if inside is z else (inside / self.unit).flatten()

    def objective(self, unknown: Tensor) -> float:
        """Return ½ min_a ‖v − Σ a φ‖²."""
        with torch.no_grad():
            gram, moment = self.features.products(self.inputs(unknown))
            weights = feature_weights(gram, moment, self.ridge)
            return float(half_residual(gram, moment, self.features.energy, weights))

    def linearise(self, unknown: Tensor) -> Linearisation:
        """Return the gradient, and the products with the projected curvature."""
        point = unknown.detach().requires_grad_()
        gram, moment = self.features.products(self.inputs(point))
        weights = feature_weights(gram, moment, self.ridge).detach()
        factor = ridge_factor(gram.detach(), self.ridge)
        value = half_residual(gram, moment, self.features.energy, weights)
        (gradient,) = torch.autograd.grad(value, point)
        x, a = unknown.detach().requires_grad_(), weights.clone().requires_grad_()
        z, b = unknown.detach().requires_grad_(), weights.clone().requires_grad_()
        cross = self.features.cross(self.inputs(x), self.inputs(z))
        slopes = torch.autograd.grad(a.dot(cross @ b), (z, b), create_graph=True)

        def product(direction: Tensor) -> Tensor:
            on_x, on_a = torch.autograd.grad(
                slopes[0], (x, a), direction, retain_graph=True
            )
            answer = torch.cholesky_solve(on_a[:, None], factor).squeeze(1)
            (back,) = torch.autograd.grad(slopes[1], x, answer, retain_graph=True)
            return on_x - back

        return Linearisation(gradient, product)


def gauss_newton(
    features: TangentFeatures,
    unknowns: Unknowns,
    start: Tensor,
    weights: Tensor,
    *,
    ridge: float,
    iterations: int,
    inner_iterations: int,
    seconds: float,
    tolerance: float,
    watch: Stopwatch,
) -> tuple[Tensor, Descent]:
    """Refine candidates to least squares; quadratic near an exact solution.

    Args:
        features: with the observation.
        unknowns: what z stands for.
        start: z₀, shape [M, k].
        weights: a at the start, shape [R], for the units of z.
        ridge: share of the mean diagonal of K.
        iterations: Levenberg–Marquardt steps at most.
        inner_iterations: conjugate-gradient products per step.
        seconds: CPU seconds on the watch at which to end.
        tolerance: stop at a residual ‖v − Σ a φ‖² / ‖v‖² below this.
        watch: counts evaluations and time.

    Returns:
        z, and the course of ½‖v − Σ a φ‖².
    """
    unit = _unit(features, unknowns.inputs([start]), weights)
    fit = ProjectedFit(features, unknowns, unit, ridge)
    limits = Limits(
        iterations=iterations,
        evaluations=2**62,
        seconds=seconds,
        inner_iterations=inner_iterations,
        tolerance=0.5 * tolerance * features.energy,
        stall=1e-9,
    )
    first = (start / unit).flatten()
    found = levenberg_marquardt(fit, first, limits, watch, fit.project)
    return fit.variable(found.point).detach(), found


def _unit(features: TangentFeatures, inputs: Tensor, weights: Tensor) -> Tensor:
    """Choose units in which every example moves the explanation about as much.

    Strong and weak examples differ by orders of magnitude, and so would the curvature.
    """
    with torch.no_grad():
        gram, _ = features.products(inputs)
    table = weights.reshape(len(inputs), -1)
    effects = candidate_scores(table, self_blocks(gram, len(inputs))).sqrt()
    effects = effects.clamp_min(_WEAK * float(effects.max()) + _TINY)
    return (1 / effects)[:, None]
