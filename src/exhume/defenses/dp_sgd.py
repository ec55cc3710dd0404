"""DP-SGD: clip the gradient of each example, add Gaussian noise to the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.defenses._clip_each import ClipEach, require_separate_examples
from exhume.defenses.gaussian_noise import add_noise
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.observation import ObservationModel
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["DpSgd", "dp_sgd_std"]


@formula(
    r"\sigma_O = z\, C / b",
    reference="Abadi et al., CCS 2016, algorithm 1, with the expected batch size b",
)
def dp_sgd_std(noise_multiplier: float, max_norm: float, batch_size: int) -> float:
    """Return the standard deviation of the noise on every coordinate of the mean.

    Args:
        noise_multiplier: z ≥ 0, noise of the sum over the sensitivity.
        max_norm: C > 0, in the units of a gradient.
        batch_size: b ≥ 1.
    """
    return noise_multiplier * max_norm / batch_size


@dataclass(frozen=True, kw_only=True)
class DpSgd(Defense):
    """Release (Σ_i g_i · min(1, C/‖g_i‖₂) + z C ξ) / b with ξ ~ N(0, I).

    As in Opacus, b is the *expected* batch size, a public number that does not depend
    on who takes part: divided by the actual size, the release would tell it. With
    batches of fixed size it is that size, and the release is the noisy mean. Another b
    only changes the units of the release, neither what it tells nor ε.

    One release has the noise multiplier z for adding or removing one example. Epsilon
    over a training is accounting and depends on sampling rate and steps.

    Attributes:
        max_norm: C > 0, in the units of a gradient.
        noise_multiplier: z ≥ 0; the noise on the release is z C / b.
        batch_size: b ≥ 1.
        only: glob patterns of the tensors that are clipped and get noise; where it
            leaves out any, there is no differential privacy.

    Raises:
        InvalidInput: an option is out of range; in ``calibrate``, the model mixes the
            examples of a batch (BatchNorm in train mode).
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
@article{yousefpour2021opacus,
  title = {Opacus: User-Friendly Differential Privacy Library in {PyTorch}},
  author = {Yousefpour, Ashkan and Shilov, Igor and Sablayrolles, Alexandre and others},
  journal = {arXiv preprint arXiv:2109.12298},
  year = {2021},
}
"""

    max_norm: float
    noise_multiplier: float
    batch_size: int
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            msg = f"max_norm is {self.max_norm}; expected a finite number above 0"
            raise InvalidInput(msg)
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            msg = (
                f"noise_multiplier is {self.noise_multiplier}; expected a finite "
                f"number of at least 0"
            )
            raise InvalidInput(msg)
        if self.batch_size < 1:
            msg = f"batch_size is {self.batch_size}; expected at least 1"
            raise InvalidInput(msg)

    @property
    def std(self) -> float:
        """Standard deviation of the noise on the release, z C / b."""
        return dp_sgd_std(self.noise_multiplier, self.max_norm, self.batch_size)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return clipping and noise, for batches of two."""
        return (cls(max_norm=0.1, noise_multiplier=6.0, batch_size=2),)

    def idle(self) -> Self:
        """Return a threshold that no norm reaches, without noise."""
        return replace(self, max_norm=1e6, noise_multiplier=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Check that examples have gradients of their own, and list what is covered."""
        del public, key
        require_separate_examples(task)
        return self._plan(task)

    def transform_model(self, model: ObservationModel, plan: Plan) -> ObservationModel:
        """Clip F of each example before the sum."""
        return ClipEach(model, self.max_norm, plan.covers, self.batch_size)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        if not self.adds_noise:
            return covered
        return {
            name: add_noise(covered[name], self.std, generator(key, name))
            for name in plan.covers
        }

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Add the noise; the clipping is part of the forward model."""
        del observed
        if not self.adds_noise:
            return law
        variance = torch.tensor(self.std, dtype=torch.float64).square()
        return law.plus_noise(dict.fromkeys(plan.covers, variance))

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Bound the share of one example by C/b and add noise of z C/b."""
        sensitivity = self.max_norm / self.batch_size
        bounded = before.clipped(plan.covers, sensitivity, "example")
        return bounded.plus_noise(dict.fromkeys(plan.covers, self.std**2))

    @property
    def adds_noise(self) -> bool:
        """Whether z > 0."""
        return self.noise_multiplier > 0

    @property
    def preserves_zeros(self) -> bool:
        """Whether nothing is added."""
        return not self.adds_noise
