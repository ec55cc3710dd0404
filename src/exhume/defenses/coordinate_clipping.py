"""Clipping of each coordinate: clamp every entry of the update to [−C, C]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["ClampEach", "CoordinateClipping", "clamp_coordinates"]

_NOISE_CLAMPED = (
    "noise is added before each coordinate is clamped, so the release has atoms at the "
    "limits and is not Gaussian"
)


@formula(
    r"O_j = \max(-C, \min(C, g_j))",
    reference="Pascanu et al., ICML 2013, section 3.2 (element-wise clipping)",
)
def clamp_coordinates(values: Tensor, limit: float) -> Tensor:
    """Clamp every entry to [−C, C]; its derivative is 0 outside.

    Args:
        values: g, any shape.
        limit: C > 0, in the units of g.
    """
    return values.clamp(-limit, limit)


@dataclass(frozen=True)
class ClampEach:
    """The map g_j ↦ max(−C, min(C, g_j)) on some tensors.

    Attributes:
        limit: C.
        names: tensors that are clamped; others pass.
    """

    limit: float
    names: tuple[str, ...]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the clamped tree, differentiable except at the limits."""
        return {
            name: clamp_coordinates(t, self.limit) if name in self.names else t
            for name, t in tree.items()
        }


@dataclass(frozen=True, kw_only=True)
class CoordinateClipping(Defense):
    """Release max(−C, min(C, g_j)) of every covered coordinate.

    A clamped coordinate tells its sign and that |g_j| ≥ C, and nothing else: the map in
    the law is flat there. Small coordinates pass as they are. The map is continuous and
    differentiable almost everywhere, so with noise behind it bounds apply.

    Attributes:
        max_abs: C > 0, in the units of the update.
        only: glob patterns of the tensors that are clamped.

    Raises:
        InvalidInput: ``max_abs`` is not positive and finite.
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
"""

    max_abs: float
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_abs) and self.max_abs > 0):
            msg = f"max_abs is {self.max_abs}; expected a finite number above 0"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a limit below the largest entry of a gradient."""
        return (cls(max_abs=0.2),)

    def idle(self) -> Self:
        """Return a limit that no entry reaches."""
        return replace(self, max_abs=1e6)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is covered; the limit is the option itself."""
        del public, key
        return self._plan(task)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        del key
        return ClampEach(self.max_abs, plan.covers)(covered)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Append the map; noise that enters it stops being Gaussian."""
        del observed
        clamped = law.then(ClampEach(self.max_abs, plan.covers))
        if law.noisy_on(plan.covers):
            return replace(clamped, not_gaussian=_NOISE_CLAMPED)
        return clamped

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Bound the share of one client by C √n, the diagonal of the cube.

        The projection onto a cube is 1-Lipschitz, so a smaller bound stays.
        """
        size = sum(math.prod(plan.shapes[name]) for name in plan.covers)
        return before.clipped(plan.covers, self.max_abs * math.sqrt(size), "client")

    @property
    def preserves_zeros(self) -> bool:
        """Zero is inside of every cube, and a clamped entry is not zero."""
        return True
