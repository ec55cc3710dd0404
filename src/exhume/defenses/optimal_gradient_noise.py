"""Optimal Gradient Noise: independent Gaussian noise with variances a_i / h_i."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.defenses._public_scales import (
    PRIVATE_SCALES,
    UtilityMetric,
    check_noise_options,
    check_scale_options,
    mean_squared_sensitivities,
    metric_columns,
    metric_diagonal,
    public_batches,
)
from exhume.defenses.gaussian_noise import add_noise
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.privacy import Guarantee
from exhume.problem.sensitivity import squared_sensitivities
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached, size

if TYPE_CHECKING:
    from exhume.problem.observation import Candidate, ObservationModel

__all__ = ["OptimalGradientNoise", "PrivateVariance", "optimal_variance"]

# Directions of the private sketch are public, like every constant of the mechanism.
_PRIVATE_DIRECTIONS = fold(0, "optimal-gradient-noise")


@formula(
    r"v_i = \sigma^2 \frac{\sum_j h_j^2}{\sum_j a_j h_j} \cdot \frac{a_i}{h_i}",
    reference="Chen, Gursoy and Lei 2024, Optimal Gradient Noise; v is a variance",
)
def optimal_variance(
    sensitivity: Tree, metric: Tree, std: float, *, cap: float, ridge: float
) -> Tree:
    """Return the variances that minimise Σ a_i²/v_i at the cost Σ v_i h_i² of σ²‖h‖².

    Args:
        sensitivity: a_i², by name.
        metric: h_i², by name.
        std: σ; isotropic noise of this standard deviation costs the same utility.
        cap: largest ratio of a_i/h_i to its mean; smaller ratios are raised to 1/cap.
        ridge: added to h_i², as a share of its mean.

    Returns:
        v, by name, positive, differentiable where no clamp is active.
    """
    count = size(metric)
    floor = ridge * sum(h.sum() for h in metric.values()) / count
    tiny = torch.finfo(torch.float64).tiny ** 0.5
    h2 = {name: h.double() + floor + tiny for name, h in metric.items()}
    # The root of a vanishing sensitivity has no derivative.
    ratio = {
        n: (a.double().clamp_min(tiny) / h2[n]).sqrt() for n, a in sensitivity.items()
    }
    mean = sum(r.sum() for r in ratio.values()) / count
    shape = {n: (r / mean).clamp(1 / cap, cap) for n, r in ratio.items()}
    cost = sum((shape[n] * h2[n]).sum() for n in shape)
    budget = std**2 * sum(h.sum() for h in h2.values())
    return {name: s * budget / cost for name, s in shape.items()}


@dataclass(frozen=True)
class PrivateVariance:
    """The variance as a function of the batch that the noise is to hide.

    Attributes:
        defense: its options.
        names: tensors that get noise.
    """

    defense: OptimalGradientNoise
    names: tuple[str, ...]

    def __call__(
        self, task: Task, model: ObservationModel, candidate: Candidate
    ) -> Tree:
        """Return v(x), composable with ``torch.func``."""
        a2 = squared_sensitivities(
            task,
            model,
            candidate.inputs,
            candidate.targets,
            probes=self.defense.probes,
            key=_PRIVATE_DIRECTIONS,
        )
        h2 = {n: g.square() for n, g in model.forward_func(task, candidate).items()}
        return optimal_variance(
            {name: a2[name] for name in self.names},
            {name: h2[name] for name in self.names},
            self.defense.std,
            cap=self.defense.cap,
            ridge=self.defense.ridge,
        )


@dataclass(frozen=True, kw_only=True)
class OptimalGradientNoise(Defense):
    """Release g + N(0, diag v), v_i ∝ a_i/h_i, at the utility cost of isotropic noise.

    a_i² = E‖∇_x g_i‖² is how strongly coordinate i reacts to the data, h_i² what noise
    on it costs. At equal cost Σ v_i h_i² the trace bound is 1/cos²(a, h) times that of
    isotropic noise. Both come from public data, so v is fixed before any private data
    are seen. With ``scale_source="private"`` they come from the private batch, as in
    the authors' code: then the variance itself tells about the batch, at any noise
    level; the bound counts that, and the attack ``covariance-aware`` uses it.

    Attributes:
        std: σ ≥ 0; the noise costs as much utility as isotropic noise of this standard
            deviation, Σ v_i h_i² = σ² Σ h_i².
        metric: h_i²: ``u2`` is E g_i² (Chen et al.), ``power`` is 1, ``curvature`` the
            Gauss–Newton diagonal.
        scale_source: ``public`` or ``private``. Averages over past releases are no
            third one: a_i is a derivative by the data, which no update holds.
        probes: random directions per batch in the sketch of a_i; its relative error is
            1/√(2 · probes · samples).
        samples: public batches to average over, at most.
        batch_size: B of the private batch, which is public; another one is refused.
        cap: largest ratio of v_i to the mean before scaling, and of the mean to v_i.
        ridge: added to h_i², as a share of its mean.
        only: glob patterns of the tensors that get noise.

    Raises:
        InvalidInput: an option is out of range.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    bibtex: ClassVar[str] = """\
@misc{chen2024optimal,
  title = {Optimal Defenses Against Gradient Reconstruction Attacks},
  author = {Chen, Yuxiao and G{\\"u}rsoy, Gamze and Lei, Qi},
  year = {2024}, eprint = {2411.03746}, archivePrefix = {arXiv}
}
"""

    std: float
    metric: UtilityMetric = "u2"
    scale_source: Literal["public", "private"] = "public"
    probes: int = 32
    samples: int = 64
    batch_size: int = 1
    cap: float = 1e3
    ridge: float = 1e-6
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        check_noise_options(self.std, self.ridge)
        counts = {
            "probes": self.probes,
            "samples": self.samples,
            "batch_size": self.batch_size,
        }
        check_scale_options(self.scale_source, counts)
        if not self.cap > 1:
            msg = f"cap is {self.cap}; expected a number above 1, e.g. 1e3"
            raise InvalidInput(msg)
        if self.scale_source == "private" and self.metric != "u2":
            msg = (
                f"private scales use h_i = |g_i| of the batch itself, which is the "
                f"metric 'u2', not {self.metric!r}"
            )
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a diagonal and a curvature design, for batches of two."""
        return tuple(
            cls(std=0.3, metric=metric, probes=2, samples=2, batch_size=2)
            for metric in ("u2", "curvature")
        )

    def idle(self) -> Self:
        """Return noise of std 0."""
        return replace(self, std=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Estimate a and h on public data.

        Raises:
            InvalidInput: there are no public data.
        """
        plan = self._plan(task)
        if not self.adds_noise:
            return plan
        if self.scale_source == "private":
            warnings.warn(PRIVATE_SCALES, UserWarning, stacklevel=2)
        batches = public_batches(
            "optimal-gradient-noise", public, self.batch_size, self.samples, key
        )
        a2 = mean_squared_sensitivities(task, batches, self.probes, key)
        columns = metric_columns(
            task, batches, self.metric, fold(key, "metric"), plan.covers
        )
        own = {name: a2[name] for name in plan.covers}
        h2 = metric_diagonal(columns, own)
        variance = optimal_variance(own, h2, self.std, cap=self.cap, ridge=self.ridge)
        return self._plan(task, arrays=variance)

    def personalise(
        self,
        task: Task,
        model: ObservationModel,
        candidate: Candidate,
        plan: Plan,
        key: int,
    ) -> Plan:
        """Replace the public scales by those of the private batch, if asked to."""
        del key
        if self.scale_source == "public" or not self.adds_noise:
            return plan
        variance = PrivateVariance(self, plan.covers)(task, model, candidate)
        return replace(plan, arrays=detached(variance))

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        if not self.adds_noise:
            return covered
        return {
            name: add_noise(t, plan.arrays[name].sqrt(), generator(key, name))
            for name, t in covered.items()
        }

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Add v; private scales make it a function of the candidate."""
        del observed
        if not self.adds_noise:
            return law
        if self.scale_source == "public":
            return law.plus_noise(plan.arrays)
        return law.plus_private_noise(plan.arrays, PrivateVariance(self, plan.covers))

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Count public noise in its weakest coordinate; private scales void all."""
        if not self.adds_noise:
            return before
        if self.scale_source == "private":
            return before.void("the noise scale depends on the private data")
        return before.plus_noise(plan.arrays)

    @property
    def designed_for(self) -> int | None:
        """B of the private batch, if there is noise."""
        return self.batch_size if self.adds_noise else None

    @property
    def adds_noise(self) -> bool:
        """Whether σ > 0."""
        return self.std > 0

    @property
    def preserves_zeros(self) -> bool:
        """Whether nothing is added."""
        return not self.adds_noise
