"""The maximum-a-posteriori objective of an observation, and its linearisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.attacks.unknowns import Unknowns
from exhume.formula import formula
from exhume.problem.law import Law, Whitener
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.prior import Density
from exhume.problem.task import Task
from exhume.problem.tree import Tree, flatten, subtract

__all__ = [
    "Linearisation",
    "MapResidual",
    "PriorCurvature",
    "laplace_objective",
    "map_objective",
    "profile_objective",
    "release_weights",
    "rounding_weights",
]

# An exact release still carries the rounding of the arithmetic that made it; a sum over
# a few hundred terms loses about this many units in the last place.
_ROUNDING_UNITS = 16
# A tensor below this many units of the largest one is the rounding of an exact zero:
# the bias of a layer before BatchNorm has up to 60 (measured), a real one thousands.
_ZERO_UNITS = 256
# Least share of its declared variance that noise of unknown scale is believed to have.
_LEAST_SHARE = 1e-8
# Width of the kink of |r| that a Newton method needs rounded, in standard deviations.
_KINK = 0.05
# Variance of n² for noise of variance 1: E n⁴ − 1.
_SPREAD = {"gaussian": 2.0, "laplace": 5.0}
# Standard deviations of ‖r‖² ~ χ²_P beyond which it is not noise (Morozov 1966).
_DISCREPANCY = 5.0


@formula(
    r"\Phi(x) = \tfrac12 \lVert \Sigma^{-1/2}(h(F(x)) - O) \rVert^2 - \log p(x)",
    reference="maximum a posteriori; Balunović et al., ICLR 2022, eq. (4)",
)
def map_objective(residual: Tensor, prior_energy: Tensor | float) -> Tensor:
    """Return the negative log posterior of a candidate, up to a constant.

    Args:
        residual: whitened residual r = Σ^{-1/2}(h(F(x)) − O), shape [P].
        prior_energy: −log p(x), a scalar.
    """
    return 0.5 * residual.dot(residual) + prior_energy


@formula(
    r"\Phi(x) = \tfrac P2 \log \tfrac{\lVert r \rVert^2}{P} - \log p(x)",
    reference="likelihood of Gaussian noise, maximal over its unknown scale",
)
def profile_objective(
    residual: Tensor, freedom: int, prior_energy: Tensor | float
) -> Tensor:
    """Return the negative log posterior if the noise is known up to one factor.

    Args:
        residual: whitened residual r, shape [n]; void coordinates are zero.
        freedom: P, the number of coordinates that are not void.
        prior_energy: −log p(x), a scalar.
    """
    share = residual.dot(residual) / freedom + _LEAST_SHARE
    return 0.5 * freedom * share.log() + prior_energy


@formula(
    r"\Phi(x) = \sum_i \sqrt{2 (r_i^2 + \epsilon^2)} - \log p(x)",
    reference="Laplace noise: Balunović et al., ICLR 2022, with a smooth modulus",
)
def laplace_objective(residual: Tensor, prior_energy: Tensor | float) -> Tensor:
    """Return the negative log posterior under Laplace noise, up to a constant.

    Args:
        residual: r = (h(F(x)) − O)/√v, shape [P].
        prior_energy: −log p(x), a scalar.
    """
    return 2**0.5 * (_smooth_modulus(residual) - _KINK).sum() + prior_energy


def _smooth_modulus(residual: Tensor) -> Tensor:
    return (residual.square() + _KINK**2).sqrt()


def rounding_weights(observed: Tree, dtype: torch.dtype) -> Tree:
    """Return Σ^{-1/2} of an exact release: rounding relative to each tensor's size.

    Σ_t = (c·ε·‖O_t‖)² / n_t with ε the unit of the coarser precision: every tensor
    counts the same whatever its scale, and a prior weighs next to nothing. A tensor
    that is zero up to rounding (a bias before BatchNorm) has no scale of its own and
    takes the largest.

    Args:
        observed: O by name, in the precision in which it was released.
        dtype: precision of the returned weights.
    """
    size = {n: t.to(dtype).square().mean().sqrt() for n, t in observed.items()}
    largest = max(size.values(), key=float).clamp_min(torch.finfo(dtype).tiny ** 0.5)
    # The coarser of two precisions: that of the release, and that of the computation.
    own_unit = torch.finfo(dtype).eps
    unit = {n: max(torch.finfo(t.dtype).eps, own_unit) for n, t in observed.items()}
    return {
        name: 1
        / (_ROUNDING_UNITS * unit[name])
        / torch.where(own > _ZERO_UNITS * unit[name] * largest, own, largest)
        for name, own in size.items()
    }


def release_weights(observed: Tree, law: Law, dtype: torch.dtype) -> Tree:
    """Return Σ^{-1/2}: the declared noise where there is any, else the rounding."""
    weights = rounding_weights(observed, dtype)
    for name, variance in law.variance.items():
        like = observed[name]
        v = torch.broadcast_to(variance.to(like.device, dtype), like.shape)
        noisy = v.clamp_min(torch.finfo(dtype).tiny).rsqrt()
        weights[name] = torch.where(v > 0, noisy, weights[name])
    return weights


@dataclass(frozen=True, eq=False)
class MapResidual:
    """r(u) = Σ^{-1/2}(h(F(x)) − O) and −log p(x) as functions of one flat unknown u.

    Attributes:
        task: model in the precision of the computation.
        model: observation model F.
        law: h, masks and noise; the identity law for an exact release.
        observed: O by name.
        weights: Σ^{-1/2}, by name, of tensors with independent noise.
        unknowns: what u stands for: inputs, and perhaps labels and hidden randomness.
        batch_size: B.
        prior: density of an example, or None.
        scale_known: Σ is known, and not up to one factor only: False where something
            after the noise has scaled or selected it.
    """

    task: Task
    model: ObservationModel
    law: Law
    observed: Tree
    weights: Tree
    unknowns: Unknowns
    batch_size: int
    prior: Density | None
    scale_known: bool = True

    @property
    def freedom(self) -> int:
        """The number P of observed coordinates that are not void."""
        ones = {n: torch.ones_like(t) for n, t in self.observed.items()}
        return sum(int(t.sum()) for t in self.law.keep(ones).values())

    @property
    def scarce(self) -> bool:
        """Whether the prior has to fill in what too few observations leave open.

        In a release that is nearly exact the prior then weighs next to nothing beside
        the few directions that are seen, and a descent never reaches its minimum in
        the others, unless it starts from a blurred observation.
        """
        return self.prior is not None and self.freedom < 2 * self.numbers

    def residual(self, unknown: Tensor) -> Tensor:
        """Return r(u), shape [P], differentiable in u."""
        return self.residual_at(self.unknowns.candidate(unknown))

    def residual_at(self, candidate: Candidate) -> Tensor:
        """Return r at explicit inputs, targets and randomness of the client."""
        mean = self.law.mean(self.model.forward(self.task, candidate))
        difference = subtract(mean, self.law.keep(self.observed))
        whiten = Whitener(self.weights, self.law.covariance, self.law.mask)
        return flatten(whiten(difference))

    def energy(self, inputs: Tensor) -> Tensor:
        """Return −log p(x), zero without a prior."""
        if self.prior is None:
            return inputs.new_zeros(())
        return self.prior.energy(inputs)

    def objective(self, unknown: Tensor) -> float:
        """Return Φ(u)."""
        return self.objective_at(self.unknowns.candidate(unknown.detach()))

    def objective_at(self, candidate: Candidate) -> float:
        """Return Φ at explicit inputs, targets and randomness of the client.

        Args:
            candidate: its nuisance variables are the client's own randomness, standard
                normal a priori; without them it is at its mean.
        """
        with torch.no_grad():
            residual = self.residual_at(candidate)
            energy = self.energy(candidate.inputs)
            for value in candidate.nuisance.values():
                energy = energy + 0.5 * value.square().sum()
            if not self.scale_known:
                return float(profile_objective(residual, self.freedom, energy))
            if self.law.family == "laplace":
                return float(laplace_objective(residual, energy))
            return float(map_objective(residual, energy))

    def softened(self, level: float) -> MapResidual:
        """Return the same problem with a blurred observation.

        Adds the variance (level · rms(O_t))² to every coordinate of tensor t.
        """
        blur = {n: level * t.square().mean().sqrt() for n, t in self.observed.items()}
        weights = {n: (w**-2 + blur[n] ** 2).rsqrt() for n, w in self.weights.items()}
        law = self.law
        if law.covariance is not None:
            law = replace(law, covariance=law.covariance.blurred(_squares(blur)))
        return replace(self, weights=weights, law=law, scale_known=True)

    def fitted(self, unknown: Tensor) -> bool:
        """Say whether ‖r‖² is what the noise alone explains (discrepancy principle).

        Noise of unknown scale explains anything, so nothing is ever fitted to it.
        """
        if not self.scale_known:
            return False
        with torch.no_grad():
            residual = self.residual(unknown)
        freedom = self.freedom
        limit = freedom + _DISCREPANCY * (_SPREAD[self.law.family] * freedom) ** 0.5
        return float(residual.dot(residual)) <= limit

    def linearise(self, unknown: Tensor) -> Linearisation:
        """Return gradient and Gauss–Newton products of Φ at u.

        One graph of F serves every product: Jᵀw is one pass back through it, and Jv is
        the derivative of w ↦ Jᵀw, which is linear in w (the double-backward trick).
        """
        point = unknown.detach().requires_grad_()
        candidate = self.unknowns.candidate(point)
        residual = self.residual_at(candidate)
        dummy = torch.zeros_like(residual, requires_grad=True)
        (adjoint,) = torch.autograd.grad(residual, point, dummy, create_graph=True)
        value = residual.detach()
        factor = self._reweighting(value)
        (slope,) = torch.autograd.grad(
            residual, point, factor * value, retain_graph=True
        )
        prior = None
        gradient = slope + self._only_hidden(point.detach())
        if self.prior is not None:
            prior = PriorCurvature(self.prior, point, candidate.inputs)
            gradient = gradient + prior.slope()

        def product(direction: Tensor) -> Tensor:
            # A release that is flat (signs) leaves no path from the adjoint to w.
            (image,) = torch.autograd.grad(
                adjoint, dummy, direction, retain_graph=True, materialize_grads=True
            )
            (back,) = torch.autograd.grad(
                residual, point, factor * image, retain_graph=True
            )
            back = back + self._only_hidden(direction)
            return back if prior is None else back + prior.product(direction)

        return Linearisation(gradient, product)

    def _reweighting(self, residual: Tensor) -> Tensor | float:
        """Return ρ′(r)/r of the objective Σ ρ(r): 1 for Gaussian noise of known scale.

        An unknown scale is put at its likeliest value, given this point.
        """
        if not self.scale_known:
            return 1 / (float(residual.square().sum()) / self.freedom + _LEAST_SHARE)
        if self.law.family == "laplace":
            return 2**0.5 / _smooth_modulus(residual)
        return 1.0

    def _only_hidden(self, vector: Tensor) -> Tensor:
        """Return v with zeros everywhere but in the place of the client's randomness.

        It is the slope at v of its energy ½‖ε‖², whose curvature is the identity.
        """
        start = vector.numel() - self.unknowns.hidden_size
        return torch.cat([torch.zeros_like(vector[:start]), vector[start:]])

    @property
    def numbers(self) -> int:
        """The number q of unknown reals: inputs, label logits, client's randomness."""
        return self.unknowns.numbers(self.batch_size)


def _squares(tree: Tree) -> Tree:
    return {name: t.square() for name, t in tree.items()}


@dataclass(frozen=True, eq=False)
class Linearisation:
    """First-order model of Φ at a point.

    Attributes:
        gradient: ∇Φ = Jᵀr − ∇log p, shape [q].
        product: v ↦ (JᵀJ + H_prior) v; two model gradients each.
    """

    gradient: Tensor
    product: Callable[[Tensor], Tensor]


class PriorCurvature:
    """−log p(g(z)) at a point u: its slope, and products with JᵀH(x)J, J = ∂x/∂u.

    The curvature of g itself is left out, as in Gauss–Newton, so that what is left is
    positive semi-definite. One graph of g serves every product.

    Args:
        prior: of an example; it has a curvature H.
        point: u, shape [q], requires gradients.
        inputs: x, computed from u.
    """

    def __init__(self, prior: Density, point: Tensor, inputs: Tensor) -> None:
        self._prior, self._point, self._inputs = prior, point, inputs
        # Jv is the derivative of w ↦ Jᵀw, which is linear.
        self._seed = torch.zeros_like(inputs, requires_grad=True)
        (self._adjoint,) = torch.autograd.grad(
            inputs, point, self._seed, create_graph=True
        )

    def slope(self) -> Tensor:
        """Return Jᵀ∇(−log p), shape [q]."""
        x = self._inputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._prior.energy(x), x)
        return self._pull(slope)

    def product(self, direction: Tensor) -> Tensor:
        """Return JᵀH(x)J v, shape [q].

        Args:
            direction: v, shape [q].
        """
        (along,) = torch.autograd.grad(
            self._adjoint, self._seed, direction, retain_graph=True
        )
        return self._pull(self._prior.curvature(self._inputs.detach(), along))

    def _pull(self, cotangent: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(
            self._inputs, self._point, cotangent, retain_graph=True
        )
        return back
