"""Clipping of each example: scale every per-example gradient to a largest norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from exhume.defenses._clip_each import ClipEach, require_separate_examples
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.observation import ObservationModel
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task

__all__ = ["ExampleClipping"]


@dataclass(frozen=True, kw_only=True)
class ExampleClipping(Defense):
    """Release (1/b) Σ_i g_i · min(1, C/‖g_i‖₂), g_i the gradient of one example.

    The half of DP-SGD without noise; of a batch of one it is the clipping of the whole
    update. It lowers the weight of examples with large gradients and hides nothing
    about the others. The finished update does not say what single examples gave, so
    this acts where the examples are: ``apply`` alone, on a finished update, does
    nothing.

    Attributes:
        max_norm: C > 0, in the units of a gradient.
        batch_size: b, the expected and public size of a batch, by which the sum is
            divided; None divides by its actual size, and then the sensitivity of one
            example is only known to be C, and not C/b.
        only: glob patterns of the tensors that enter the norms and are scaled; others
            are averaged as they are.

    Raises:
        InvalidInput: ``max_norm`` or ``batch_size`` is out of range; in ``calibrate``,
            the model mixes the examples of a batch (BatchNorm in train mode).
    """

    stage: ClassVar[Stage] = Stage.EXAMPLE
    bibtex: ClassVar[str] = """\
@inproceedings{abadi2016deep,
  title = {Deep Learning with Differential Privacy},
  author = {Abadi, Mart{\\'i}n and Chu, Andy and Goodfellow, Ian and McMahan, H. Brendan
            and Mironov, Ilya and Talwar, Kunal and Zhang, Li},
  booktitle = {ACM SIGSAC Conference on Computer and Communications Security},
  pages = {308--318},
  year = {2016},
}
"""

    max_norm: float
    batch_size: int | None = None
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            msg = f"max_norm is {self.max_norm}; expected a finite number above 0"
            raise InvalidInput(msg)
        if self.batch_size is not None and self.batch_size < 1:
            msg = f"batch_size is {self.batch_size}; expected at least 1, or none"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a threshold below the norm of an example's gradient."""
        return (cls(max_norm=0.1),)

    def idle(self) -> Self:
        """Return a threshold that no norm reaches."""
        return replace(self, max_norm=1e6)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Check that examples have gradients of their own, and list what is covered."""
        del public, key
        require_separate_examples(task)
        return self._plan(task)

    def transform_model(self, model: ObservationModel, plan: Plan) -> ObservationModel:
        """Clip F of each example before the mean."""
        return ClipEach(model, self.max_norm, plan.covers, self.batch_size)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Leave the law as it is: the clipping is part of the forward model."""
        del plan, observed
        return law

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Bound the share of one example."""
        norm = self.max_norm / (self.batch_size or 1)
        return before.clipped(plan.covers, norm, "example")

    @property
    def preserves_zeros(self) -> bool:
        """A finished update passes as it is."""
        return True
