"""What a prior is: fitted to public data it becomes a density of one example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from exhume.errors import InvalidInput
from exhume.member import Member

if TYPE_CHECKING:
    from exhume.problem.batch import Batch
    from exhume.problem.task import Task

__all__ = ["Density", "Prior"]


class Density(ABC):
    """A fitted prior p(x), up to a constant: the attacker's belief about examples.

    Optional capabilities raise ``InvalidInput`` where a density lacks them; ask
    ``supports`` first.

    Attributes:
        name: registered name of the prior that made it.
        supports: subset of {"mean", "sample", "information", "curvature"}.
        fit_check: mean squared standardised distance of held-out public examples, about
            1 if they look like draws of the density; None where it is not known.
    """

    name: ClassVar[str]
    supports: ClassVar[frozenset[str]] = frozenset()
    fit_check: float | None = None

    @abstractmethod
    def energy(self, inputs: Tensor) -> Tensor:
        """Return −log p(x) summed over the batch, up to a constant; a scalar.

        Args:
            inputs: x, shape [B, *event], in natural units; differentiable.
        """

    def mean(self) -> Tensor:
        """Return E x, shape [*event]."""
        msg = "mean"
        raise self._lacks(msg)

    def sample(self, count: int, key: int) -> Tensor:
        """Draw examples, shape [count, *event]."""
        msg = "sample"
        raise self._lacks(msg)

    def information(self) -> Tensor:
        """Return J_P = E[∇log p ∇log pᵀ] of one example, shape [d, d]."""
        msg = "information"
        raise self._lacks(msg)

    def curvature(self, inputs: Tensor, direction: Tensor) -> Tensor:
        """Return H(x) t with H a positive semi-definite curvature of the energy.

        Args:
            inputs: x, shape [B, *event].
            direction: t, same shape.
        """
        msg = "curvature"
        raise self._lacks(msg)

    def _lacks(self, capability: str) -> InvalidInput:
        return InvalidInput(
            f"the prior {self.name!r} has no {capability}; choose one that has, such "
            f"as 'gaussian'"
        )


class Prior(Member, ABC):
    """A family of densities; leaves are frozen dataclasses of numbers.

    Attributes:
        variant_bibtex: option → its value → further entries to cite for this choice.
    """

    variant_bibtex: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    @abstractmethod
    def fit(self, public: Batch, task: Task) -> Density:
        """Fit to public examples (a prior without parameters ignores them).

        Args:
            public: public examples.
            task: the model that the client trains, for priors that read its buffers.
        """
