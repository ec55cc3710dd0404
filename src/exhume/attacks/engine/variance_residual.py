"""The negative log posterior where the noise itself depends on the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.map_residual import Linearisation, PriorCurvature
from exhume.attacks.unknowns import Unknowns
from exhume.formula import formula
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.prior import Density
from exhume.problem.task import Task
from exhume.problem.tree import Tree, flatten

__all__ = ["VarianceResidual", "heteroscedastic_objective"]

_TINY = 1e-300


@formula(
    r"\Psi(x) = \sum_i \frac{(O_i - g_i(x))^2}{2 v_i(x)} + \tfrac12 \log v_i(x)"
    r" - \log p(x)",
    reference="negative log posterior of N(g(x), diag v(x)); Kay 1993, Section 3.9",
)
def heteroscedastic_objective(
    difference: Tensor, variance: Tensor, prior_energy: Tensor | float
) -> Tensor:
    """Return the negative log posterior of a candidate, up to a constant.

    Args:
        difference: O − g(x) on the observed coordinates, shape [P].
        variance: v(x) > 0 there, shape [P].
        prior_energy: −log p(x), a scalar.
    """
    fit = 0.5 * (difference.square() / variance + variance.log()).sum()
    return fit + prior_energy


@dataclass(frozen=True, eq=False)
class VarianceResidual:
    """Ψ(u) and its Fisher scoring model, as functions of one flat unknown u.

    Attributes:
        task: model in the precision of the computation.
        model: observation model F.
        law: of the release, with ``variance_at``.
        observed: O by name.
        fixed: variance of tensors that ``variance_at`` leaves out, by name.
        unknowns: what u stands for: inputs, with given labels.
        prior: density of an example, or None.
        cap: c ≥ 0; 1/v is raised by c over the median squared release of the tensor.
            Where v peaks (a coordinate whose scale vanishes) Ψ has narrow gaps that
            hold a descent; a cap closes them. 0 is the problem itself.
    """

    task: Task
    model: ObservationModel
    law: Law
    observed: Tree
    fixed: Tree
    unknowns: Unknowns
    prior: Density | None
    cap: float = 0.0

    def moments(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """Return g(x) and v(x) of the coordinates that are not void, both [P]."""
        mean = self.law.mean(self.model.forward_func(self.task, candidate))
        assert self.law.variance_at is not None
        own = self.law.variance_at(self.task, self.model, candidate)
        variance = {
            n: self._capped(n, (own[n] if n in own else self.fixed[n]).to(t))
            for n, t in mean.items()
        }
        kept = self._kept()
        return flatten(mean)[kept], flatten(variance)[kept]

    def _capped(self, name: str, variance: Tensor) -> Tensor:
        if self.cap == 0:
            return variance
        scale = self.observed[name].square().median().clamp_min(_TINY)
        return variance / (1 + self.cap / scale * variance)

    def objective(self, unknown: Tensor) -> float:
        """Return Ψ(u)."""
        return self.objective_at(self.unknowns.candidate(unknown))

    def objective_at(self, candidate: Candidate) -> float:
        """Return Ψ at explicit inputs and labels."""
        with torch.no_grad():
            return float(self._value(candidate))

    def linearise(self, unknown: Tensor) -> Linearisation:
        """Return ∇Ψ and products with JᵀV⁻¹J + ½ (∇log v)ᵀ(∇log v) + H_prior at u."""
        point, candidate = unknown.detach(), self.unknowns.candidate
        gradient = torch.func.grad(lambda u: self._value(candidate(u)))(point)
        at = self.moments(candidate(point))[1].detach().rsqrt()

        def root(u: Tensor) -> Tensor:
            mean, variance = self.moments(candidate(u))
            return torch.cat([at * mean, variance.log() / 2**0.5])

        pull: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(root, point)[1]
        prior = self._prior_at(point)

        def product(direction: Tensor) -> Tensor:
            along = torch.func.jvp(root, (point,), (direction,))[1]
            back = pull(along)[0]
            return back if prior is None else back + prior.product(direction)

        return Linearisation(gradient, product)

    def _value(self, candidate: Candidate) -> Tensor:
        mean, variance = self.moments(candidate)
        difference = flatten(self.observed)[self._kept()] - mean
        energy = 0.0 if self.prior is None else self.prior.energy(candidate.inputs)
        return heteroscedastic_objective(difference, variance, energy)

    def _kept(self) -> Tensor:
        ones = {n: torch.ones_like(t) for n, t in self.observed.items()}
        return flatten(self.law.keep(ones)) > 0

    def _prior_at(self, point: Tensor) -> PriorCurvature | None:
        if self.prior is None:
            return None
        at = point.clone().requires_grad_()
        return PriorCurvature(self.prior, at, self.unknowns.inputs(at))
