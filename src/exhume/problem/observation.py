"""What an observation model is: F, its linearisation, and its residual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from exhume.errors import InvalidInput
from exhume.member import Member
from exhume.problem.tree import Tree, subtract

if TYPE_CHECKING:
    from exhume.problem.task import Task

__all__ = ["Candidate", "ObservationKind", "ObservationModel"]

ObservationKind = Literal["gradient", "update", "fine-tuning", "weights"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A guess of the private batch, with nuisance variables if the model has any.

    Attributes:
        inputs: x, shape [B, *event].
        targets: class indices [B], probabilities [B, K], or real targets.
        nuisance: further unknowns of implicit models, by name (multipliers λ, say).
    """

    inputs: Tensor
    targets: Tensor
    nuisance: Mapping[str, Tensor] = field(default_factory=dict)


class ObservationModel(Member, ABC):
    """A forward model F; leaves are frozen dataclasses.

    Attributes:
        kind: what is shared: a gradient, a change of the weights, or the weights.
        opaque: a sentence if F has no derivative that one can take (a training to the
            end); bounds then say that they do not apply. None otherwise.
    """

    kind: ClassVar[ObservationKind] = "gradient"
    opaque: ClassVar[str | None] = None

    @abstractmethod
    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return F(S), differentiable in the candidate (autograd)."""

    @abstractmethod
    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return F(S), composable with ``torch.func`` transforms."""

    def forward_at(
        self, task: Task, candidate: Candidate, parameters: Mapping[str, Tensor]
    ) -> Tree:
        """Return F(S) at other weights Θ, differentiable in Θ and in the candidate.

        What takes several steps needs it; composable with ``torch.func`` transforms.

        Raises:
            InvalidInput: this model is defined at the task's own weights alone.
        """
        del task, candidate, parameters
        msg = (
            f"{type(self).__name__} cannot be evaluated at weights that move, which "
            f"several local steps need; let the client compute the plain gradient"
        )
        raise InvalidInput(msg)

    def hidden(self, batch_size: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of nuisance variables that only the client knows.

        They are standard normal and independent, one row per example; a candidate
        without them is taken at their mean, zero.
        """
        del batch_size
        return {}

    @property
    def known_rate(self) -> float | None:
        """Step size η of the client; 1 where the gradient is shared, None if open."""
        return 1.0

    @property
    def known_order(self) -> int | None:
        """Key of the order of the client's examples; 0 without one, None if open."""
        return 0

    def informed(self, rate: float | None, order: int | None) -> ObservationModel:
        """Return the model of someone who knows η and the order, or not (None)."""
        del rate, order
        return self

    def single_step(
        self, examples: int | None = None
    ) -> tuple[float, ObservationModel] | None:
        """Return (c, G) with F(S) = c · G(S), G the plain gradient; None if not so.

        Args:
            examples: B if it is known.
        """
        del examples
        return None

    def task_seen(self, task: Task, observed: Mapping[str, Tensor]) -> Task:
        """Return the task with the weights that an attacker holds beside O.

        Args:
            task: with the weights at which the client began.
            observed: O.
        """
        del observed
        return task

    def residual(self, task: Task, candidate: Candidate, observed: Tree) -> Tree:
        """Return F(S) − O, zero at the truth of a noiseless observation."""
        return subtract(self.forward(task, candidate), observed)

    def jvp(self, task: Task, candidate: Candidate, tangent: Tensor) -> Tree:
        """Return J t, the derivative of F along an input direction t [B, *event]."""
        import torch

        def at(inputs: Tensor) -> Tree:
            return self.forward_func(
                task, Candidate(inputs, candidate.targets, candidate.nuisance)
            )

        return torch.func.jvp(at, (candidate.inputs.detach(),), (tangent,))[1]

    def vjp(self, task: Task, candidate: Candidate, cotangent: Tree) -> Tensor:
        """Return Jᵀ u, the adjoint of :meth:`jvp`, shape [B, *event]."""
        import torch

        inputs = candidate.inputs.detach().requires_grad_()
        values = self.forward(
            task, Candidate(inputs, candidate.targets, candidate.nuisance)
        )
        names = list(values)
        return torch.autograd.grad(
            [values[n] for n in names], inputs, [cotangent[n] for n in names]
        )[0]
