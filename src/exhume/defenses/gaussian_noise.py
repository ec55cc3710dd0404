"""Gaussian noise: independent N(0, σ²) on every covered coordinate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["GaussianNoise", "add_noise", "check_std"]


def check_std(std: float) -> None:
    """Raise unless a standard deviation is finite and not negative.

    Raises:
        InvalidInput: names its value and what was expected.
    """
    if not (math.isfinite(std) and std >= 0):
        msg = f"std is {std}; expected a finite number of at least 0"
        raise InvalidInput(msg)


@formula(
    r"O = g + \sigma\,\xi, \quad \xi \sim \mathcal N(0, I)",
    reference="Dwork and Roth, 2014, appendix A; Zhu et al., NeurIPS 2019, section 5.1",
)
def add_noise(values: Tensor, std: float | Tensor, source: torch.Generator) -> Tensor:
    """Add independent Gaussian noise.

    Args:
        values: g, any shape, floating point.
        std: σ ≥ 0, in the units of g; one for all coordinates, or one each.
        source: generator on the CPU, so that the bits are the same on every device.

    Returns:
        O, of the shape, type and device of g.
    """
    noise = torch.randn(values.shape, generator=source, dtype=values.dtype)
    if isinstance(std, Tensor):
        std = std.to(values)
    return values + std * noise.to(values.device)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Defense):
    """Release O = g + N(0, std² I) on the covered tensors.

    The noise of a tensor depends on the key, its name, shape and type alone. It is not
    tied to a sensitivity, so it is differentially private only behind a clipping.

    Attributes:
        std: σ ≥ 0, in the units of the update; 0 adds nothing.
        only: glob patterns of the tensors that get noise.

    Raises:
        InvalidInput: ``std`` is negative or not finite.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    bibtex: ClassVar[str] = """\
@inproceedings{zhu2019deep,
  title = {Deep Leakage from Gradients},
  author = {Zhu, Ligeng and Liu, Zhijian and Han, Song},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {32},
  year = {2019},
}
@article{dwork2014algorithmic,
  title = {The Algorithmic Foundations of Differential Privacy},
  author = {Dwork, Cynthia and Roth, Aaron},
  journal = {Foundations and Trends in Theoretical Computer Science},
  volume = {9},
  number = {3--4},
  pages = {211--407},
  year = {2014},
}
"""

    std: float
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        check_std(self.std)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return noise of std 0.3."""
        return (cls(std=0.3),)

    def idle(self) -> Self:
        """Return noise of std 0."""
        return replace(self, std=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is covered; the scale is the option itself."""
        del public, key
        return self._plan(task)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        if not self.adds_noise:
            return covered
        return {
            name: add_noise(covered[name], self.std, generator(key, name))
            for name in plan.covers
        }

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Add σ² to the variance of every covered coordinate."""
        del observed
        if not self.adds_noise:
            return law
        variance = torch.tensor(self.std, dtype=torch.float64).square()
        return law.plus_noise(dict.fromkeys(plan.covers, variance))

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Add σ²; it counts if the update was clipped before."""
        if not self.adds_noise:
            return before
        return before.plus_noise(dict.fromkeys(plan.covers, self.std**2))

    @property
    def adds_noise(self) -> bool:
        """Whether σ > 0."""
        return self.std > 0

    @property
    def preserves_zeros(self) -> bool:
        """Whether nothing is added."""
        return not self.adds_noise
