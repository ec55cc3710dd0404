"""Principal components of the second moment of a two-layer gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from exhume.attacks.tensor import TensorAttack, answer
from exhume.attacks.two_layer.features import recover_features
from exhume.attacks.two_layer.recovery import Source
from exhume.errors import InvalidInput
from exhume.problem.attack import Attack
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.reconstruction import Reconstruction, Stopwatch

__all__ = ["PrincipalComponents"]


@dataclass(frozen=True, kw_only=True)
class PrincipalComponents(Attack):
    """Take the eigenvectors of P = Σ_i r_i c_2 x_i x_iᵀ for the inputs.

    P is the moment of order 2 of the gradient of f(x) = A σ(W x) with Gaussian W, taken
    in the span of the rows of ∂L/∂W where that is clear. Its eigenvectors span the
    batch, and are the inputs themselves if these are orthogonal
    and their residuals differ; the ``tensor`` attack needs neither. One example is
    always recovered. Everything after the directions is that of the tensor attack,
    without least squares in the span.

    Attributes:
        source: gradient that is averaged: of the ``hidden`` weights, of the ``output``
            weights, or ``auto``.
        norm: ‖x‖ (as the network sees x) if all are equal and known; searched if None.

    Raises:
        InvalidInput: an option is out of range.
    """

    source: Source = "auto"
    norm: float | None = None

    needs: ClassVar[frozenset[Fact]] = TensorAttack.needs
    uses: ClassVar[frozenset[Fact]] = TensorAttack.uses
    bibtex: ClassVar[str] = TensorAttack.bibtex

    def __post_init__(self) -> None:
        if self.norm is not None and not 0 < self.norm < math.inf:
            msg = f"norm is {self.norm}; expected a positive number, or None"
            raise InvalidInput(msg)

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Take the second moment, and its eigenvectors."""
        watch = Stopwatch()
        found = recover_features(
            problem,
            source=self.source,
            method="pca",
            norm=self.norm,
            polish=0,
            key=key,
        )
        return answer(problem, found, watch)
