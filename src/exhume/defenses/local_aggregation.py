"""Local aggregation: several local steps of SGD, released as their mean gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree, add, detached, scale

__all__ = ["LocalAggregation", "LocalSteps", "sgd_step"]

_COUPLED = (
    "an example that is clipped in every local step also moves the later gradients of "
    "the others; clip the whole update after the local steps"
)


@formula(
    r"\Theta_{k+1} = \Theta_k - \eta\, \nabla L(\Theta_k; S)",
    reference="McMahan et al., AISTATS 2017, algorithm 1, ClientUpdate",
)
def sgd_step(
    parameters: Mapping[str, Tensor], gradient: Mapping[str, Tensor], rate: float
) -> Tree:
    """Take one step of gradient descent.

    Args:
        parameters: Θ_k by name.
        gradient: ∇L(Θ_k; S), same layout.
        rate: η > 0.

    Returns:
        Θ_{k+1}, differentiable in both.
    """
    return {name: p - rate * gradient[name] for name, p in parameters.items()}


@dataclass(frozen=True, eq=False)
class LocalSteps(ObservationModel):
    """F_K(S) = (1/K) Σ_k F(S; Θ_k) = (Θ_0 − Θ_K) / (K η), unrolled and differentiable.

    Attributes:
        model: F of one step; it must be defined at moving weights (``forward_at``).
        steps: K.
        rate: η.
    """

    model: ObservationModel
    steps: int
    rate: float

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return the mean over the steps (autograd route)."""
        unknowns = (candidate.inputs, candidate.targets, *candidate.nuisance.values())
        differentiable = torch.is_grad_enabled() and any(
            t.requires_grad for t in unknowns
        )
        return self._unrolled(task, candidate, keep_graph=differentiable)

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return the mean over the steps (``torch.func`` route)."""
        return self._unrolled(task, candidate, keep_graph=True)

    def hidden(self, batch_size: int) -> Mapping[str, tuple[int, ...]]:
        """Return what one step hides; all steps share it."""
        return self.model.hidden(batch_size)

    def _unrolled(self, task: Task, candidate: Candidate, *, keep_graph: bool) -> Tree:
        theta: Tree = detached(task.parameters())
        # The first step is taken at fixed weights, where F needs no unrolling.
        first = self.model.forward_func if keep_graph else self.model.forward
        gradient = first(task, candidate)
        total = gradient
        for _ in range(self.steps - 1):
            theta = sgd_step(theta, gradient, self.rate)
            if not keep_graph:
                theta = detached(theta)
            gradient = self.model.forward_at(task, candidate, theta)
            total = add(total, gradient)
        return scale(1 / self.steps, total)


@dataclass(frozen=True, kw_only=True)
class LocalAggregation(Defense):
    """Release O = (1/K) Σ_{k<K} ∇L(Θ_k; S) after K full-batch steps of SGD at rate η.

    This is the change of the weights over −K η, so it has the scale of one gradient.
    All steps use the same batch. The forward model that an attacker inverts is the
    unrolled training, which is as smooth as the network; nothing is hidden by it, the
    problem only becomes less linear as K η grows, and every evaluation costs K
    gradients.

    Attributes:
        steps: K ≥ 1; 1 is the identity.
        rate: η > 0, of the local steps.

    Raises:
        InvalidInput: ``steps`` or ``rate`` is out of range, or a defense before this
            one has no forward model at moving weights.
    """

    stage: ClassVar[Stage] = Stage.EXAMPLE
    bibtex: ClassVar[str] = """\
@inproceedings{mcmahan2017communication,
  title = {Communication-Efficient Learning of Deep Networks from Decentralized Data},
  author = {McMahan, H. Brendan and Moore, Eider and Ramage, Daniel and
            Hampson, Seth and {Ag{\\"u}era y Arcas}, Blaise},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  pages = {1273--1282},
  year = {2017},
}
@article{dimitrov2022data,
  title = {Data Leakage in Federated Averaging},
  author = {Dimitrov, Dimitar I. and Balunovi{\\'c}, Mislav and Konstantinov, Nikola
            and Vechev, Martin},
  journal = {Transactions on Machine Learning Research},
  year = {2022},
}
"""

    steps: int = 1
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1:
            msg = f"steps is {self.steps}; expected at least 1 local step"
            raise InvalidInput(msg)
        if not (math.isfinite(self.rate) and self.rate > 0):
            msg = f"rate is {self.rate}; expected a finite learning rate above 0"
            raise InvalidInput(msg)

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Forget what was bounded for one step: later steps couple the examples."""
        del plan
        if self.steps == 1 or not before.bounded:
            return before
        return before.void(_COUPLED)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return three local steps."""
        return (cls(steps=3, rate=0.1),)

    def idle(self) -> Self:
        """Return the single step that a gradient is."""
        return replace(self, steps=1)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Nothing is fitted: the schedule is the options themselves."""
        del public, key
        return self._plan(task)

    def transform_model(self, model: ObservationModel, plan: Plan) -> ObservationModel:
        """Unroll K steps of the forward model."""
        del plan
        return model if self.steps == 1 else LocalSteps(model, self.steps, self.rate)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Leave the law as it is: the steps change F."""
        del plan, observed
        return law

    @property
    def preserves_zeros(self) -> bool:
        """The finished update passes untouched."""
        return True
