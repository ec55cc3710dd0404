"""Variable projection: weights of features in closed form, Gauss–Newton on the rest."""

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
from exhume.attacks.unknowns import Unknowns
from exhume.formula import formula
from exhume.problem.reconstruction import Stopwatch

__all__ = [
    "ProjectedFit",
    "explained_residual",
    "feature_weights",
    "gauss_newton",
    "half_residual",
    "projected_loss",
    "ridge_factor",
    "self_blocks",
]

_TINY = 1e-300
# Below this share of the strongest, an effect is taken as that.
_WEAK, _TINY = 1e-3, 1e-300


@formula(
    r"a = (K + \epsilon I)^{-1} c,\quad \epsilon = \rho\, \operatorname{tr}(K)/R",
    reference="Golub and Pereyra, SIAM J. Numer. Anal. 1973 (variable projection)",
)
def feature_weights(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """Return the weights with which features explain an observation best.

    Args:
        gram: K, inner products of the features, shape [R, R].
        moment: c, inner products with the observation v, shape [R].
        ridge: ρ > 0.
    """
    factor = ridge_factor(gram, ridge)
    return torch.cholesky_solve(moment[:, None], factor).squeeze(1)


@formula(
    r"1 - \frac{c^\top (K + \epsilon I)^{-1} c}{\lVert v \rVert^2} ="
    r" \min_a \frac{\lVert v - \Phi^\top a \rVert^2 + \epsilon \lVert a \rVert^2}"
    r"{\lVert v \rVert^2}",
    reference="Golub and Pereyra, SIAM J. Numer. Anal. 1973, with Tikhonov's ridge",
)
def projected_loss(gram: Tensor, moment: Tensor, energy: float, ridge: float) -> Tensor:
    """Return the share of an observation that features do not explain, in [0, 1].

    The ridge decides between many candidates that explain it: it asks for small
    weights, and large ones that cancel are what over-fitting looks like.

    Args:
        gram: K, shape [R, R].
        moment: c, shape [R].
        energy: ‖v‖² > 0.
        ridge: ρ > 0, a share of the mean diagonal of K, whose size does not count.
    """
    factor = ridge_factor(gram, ridge)
    half = torch.linalg.solve_triangular(factor, moment[:, None], upper=False)
    return 1 - half.square().sum() / energy


@formula(
    r"\frac{\lVert v - \Phi^\top a \rVert^2}{\lVert v \rVert^2} ="
    r" 1 - \frac{2 a^\top c - a^\top K a}{\lVert v \rVert^2}",
    reference="definition",
)
def explained_residual(
    gram: Tensor, moment: Tensor, energy: float, weights: Tensor
) -> float:
    """Return the plain residual at given weights, without the term of the ridge.

    Args:
        gram: K, shape [R, R].
        moment: c, shape [R].
        energy: ‖v‖² > 0.
        weights: a, shape [R].
    """
    explained = 2 * weights.dot(moment) - weights.dot(gram @ weights)
    return max(0.0, 1 - float(explained) / energy)


def self_blocks(gram: Tensor, count: int) -> Tensor:
    """Return the inner products within each of M examples, shape [M, C, C].

    Args:
        gram: K, shape [M·C, M·C].
        count: M.
    """
    channels = len(gram) // count
    own = torch.arange(count, device=gram.device)
    return gram.reshape(count, channels, count, channels)[own, :, own]


def ridge_factor(gram: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of K + εI, with a larger ε where rounding asks."""
    level = (ridge * gram.diagonal().mean()).detach().clamp_min(_TINY)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + level * eye)
        if not bool(failed) or not bool(torch.isfinite(level)):
            return factor
        level = 10 * level


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
