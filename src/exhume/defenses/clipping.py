"""Clipping: scale the whole update down to a largest Euclidean norm."""

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
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree, norm

__all__ = ["ClipNorm", "Clipping", "clip_factor"]

_NOISE_CLIPPED = (
    "noise is added before clipping, which scales it by a factor that depends on it, "
    "so the release is not Gaussian"
)


@formula(
    r"c = \min(1,\; C / \lVert g \rVert_2)",
    reference="Pascanu et al., ICML 2013, algorithm 1; McMahan et al., ICLR 2018",
)
def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """Return the factor that brings a norm down to at most C.

    Args:
        norm: ‖g‖₂ ≥ 0, a scalar; the factor is exactly 1 up to ``max_norm``.
        max_norm: C > 0, in the units of g.

    Returns:
        c in (0, 1], differentiable; g ↦ c g is 1-Lipschitz and odd.
    """
    # C / max(‖g‖, C) is min(1, C/‖g‖) without a division by zero to differentiate.
    return max_norm / norm.clamp_min(max_norm)


@dataclass(frozen=True)
class ClipNorm:
    """The map g ↦ g · min(1, C/‖g‖₂) with one norm over several tensors.

    Attributes:
        max_norm: C.
        names: tensors that enter the norm and are scaled; others pass.
    """

    max_norm: float
    names: tuple[str, ...]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the clipped tree, differentiable."""
        # In double precision, where the squares of single ones neither over- nor
        # underflow.
        parts = [
            torch.linalg.vector_norm(tree[name], dtype=torch.float64)
            for name in self.names
        ]
        norm = torch.linalg.vector_norm(torch.stack(parts))
        factor = clip_factor(norm, self.max_norm)
        clipped = {name: tree[name] * factor.to(tree[name]) for name in self.names}
        return {**tree, **clipped}


@dataclass(frozen=True, kw_only=True)
class Clipping(Defense):
    """Release g · min(1, C/‖g‖₂), with one norm over all covered tensors together.

    This bounds the whole update, as a client of federated learning does; it is neither
    the clipping of each example of DP-SGD nor the clipping of each coordinate. The map
    is Lipschitz and differentiable except on the sphere ‖g‖ = C, so bounds apply.

    Attributes:
        max_norm: C > 0, in the units of the update.
        only: glob patterns of the tensors that enter the norm and are scaled.

    Raises:
        InvalidInput: ``max_norm`` is not positive and finite.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    bibtex: ClassVar[str] = """\
@inproceedings{pascanu2013difficulty,
  title = {On the Difficulty of Training Recurrent Neural Networks},
  author = {Pascanu, Razvan and Mikolov, Tomas and Bengio, Yoshua},
  booktitle = {International Conference on Machine Learning},
  pages = {1310--1318},
  year = {2013},
}
@inproceedings{mcmahan2018learning,
  title = {Learning Differentially Private Recurrent Language Models},
  author = {McMahan, H. Brendan and Ramage, Daniel and Talwar, Kunal and Zhang, Li},
  booktitle = {International Conference on Learning Representations},
  year = {2018},
}
"""

    max_norm: float
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            msg = f"max_norm is {self.max_norm}; expected a finite number above 0"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a threshold below the norm of a gradient."""
        return (cls(max_norm=0.5),)

    def idle(self) -> Self:
        """Return a threshold that no norm reaches."""
        return replace(self, max_norm=1e6)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is covered; the threshold is the option itself."""
        del public, key
        return self._plan(task)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        del key
        return ClipNorm(self.max_norm, plan.covers)(covered)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Append the map; noise that enters it stops being Gaussian.

        Noise that was seen to stay inside the sphere passed as it was.
        """
        if law.noisy_on(plan.covers) and observed is not None:
            released = norm({name: observed[name].double() for name in plan.covers})
            # Rounding may leave a clipped release just inside the sphere.
            if float(released) < (1 - 1e-4) * self.max_norm:
                return law
        clipped = law.then(ClipNorm(self.max_norm, plan.covers))
        if law.noisy_on(plan.covers):
            return replace(clipped, not_gaussian=_NOISE_CLIPPED)
        return clipped

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Bound the share of one client: its whole update."""
        return before.clipped(plan.covers, self.max_norm, "client")

    @property
    def preserves_zeros(self) -> bool:
        """A positive factor moves no zero."""
        return True
