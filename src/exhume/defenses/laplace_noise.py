"""Laplace noise: independent, density ∝ exp(−|n|/b), on every covered coordinate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.defenses.gaussian_noise import check_std
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["LaplaceNoise", "add_laplace_noise"]


@formula(
    r"O = g + b\,(\eta_1 - \eta_2), \quad \eta_1, \eta_2 \sim \mathrm{Exp}(1),"
    r"\quad b = \sigma / \sqrt 2",
    reference="Dwork et al., TCC 2006, section 3; density ∝ exp(−|n|/b)",
)
def add_laplace_noise(values: Tensor, std: float, source: torch.Generator) -> Tensor:
    """Add independent Laplace noise of one standard deviation.

    Args:
        values: g, any shape, floating point.
        std: σ = √2 b ≥ 0, in the units of g.
        source: generator on the CPU, so that the bits are the same on every device.

    Returns:
        O, of the shape, type and device of g.
    """
    first, second = (
        torch.empty(values.shape, dtype=torch.float64).exponential_(generator=source)
        for _ in range(2)
    )
    return values + (std / math.sqrt(2) * (first - second)).to(values)


@dataclass(frozen=True, kw_only=True)
class LaplaceNoise(Defense):
    """Release O = g + n with independent n ∝ exp(−|n|/b), b = std/√2.

    At equal standard deviation it tells twice what Gaussian noise tells about its
    location: Fisher information 1/b² = 2/std². Attacks use its likelihood, the 1-norm.
    It is not tied to a sensitivity, so it is differentially private only behind a
    clipping; the clippings here bound a 2-norm, so its ε grows with the root of the
    number of coordinates.

    Attributes:
        std: σ ≥ 0, in the units of the update, as for Gaussian noise; the scale is
            b = σ/√2. 0 adds nothing.
        only: glob patterns of the tensors that get noise.

    Raises:
        InvalidInput: ``std`` is negative or not finite.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    bibtex: ClassVar[str] = """\
@inproceedings{dwork2006calibrating,
  title = {Calibrating Noise to Sensitivity in Private Data Analysis},
  author = {Dwork, Cynthia and McSherry, Frank and Nissim, Kobbi and Smith, Adam},
  booktitle = {Theory of Cryptography Conference},
  pages = {265--284},
  year = {2006},
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
            name: add_laplace_noise(covered[name], self.std, generator(key, name))
            for name in plan.covers
        }

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Add σ² = 2 b² to the variance of every covered coordinate."""
        del observed
        if not self.adds_noise:
            return law
        variance = torch.tensor(self.std, dtype=torch.float64).square()
        return law.plus_noise(dict.fromkeys(plan.covers, variance), family="laplace")

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Add Laplace noise; it counts if the update was clipped before."""
        if not self.adds_noise:
            return before
        return before.plus_noise(dict.fromkeys(plan.covers, self.std**2), "laplace")

    @property
    def adds_noise(self) -> bool:
        """Whether σ > 0."""
        return self.std > 0

    @property
    def preserves_zeros(self) -> bool:
        """Whether nothing is added."""
        return not self.adds_noise
