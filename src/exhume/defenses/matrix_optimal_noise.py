"""Matrix-optimal noise: Gaussian noise whose whole covariance maximises the bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.defenses._kronecker_optimum import kronecker_design
from exhume.defenses._low_rank_optimum import low_rank_optimum
from exhume.defenses._matrix_design import posterior_covariance
from exhume.defenses._principal_directions import (
    Tangents,
    principal_directions,
    tangents,
)
from exhume.defenses._public_scales import (
    UtilityMetric,
    check_noise_options,
    check_scale_options,
    public_batches,
)
from exhume.defenses._utility_cost import Metric, matched, public_metric
from exhume.errors import InvalidInput
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.covariance import Covariance, KroneckerFactors, LowRank
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import Law
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["MatrixOptimalNoise"]

# H must generalise: what it has not seen of the gradients is taken for cheap.
_METRIC_BATCHES = 256
_NO_PRIVATE = (
    "matrix-optimal-noise takes its scales from public data only: made of the private "
    "batch, the covariance would itself tell about the batch, in a way for which no "
    "bound is known; use scale_source='public', or optimal-gradient-noise with "
    "scale_source='private' to study the leak"
)


@dataclass(frozen=True, kw_only=True)
class MatrixOptimalNoise(Defense):
    """Release g + N(0, S), S near the optimum of all covariances of one utility cost.

    The optimum is H^{-1/2} (H^{1/2} M H^{1/2})^{1/2} H^{-1/2}, scaled to tr(S H) =
    σ² tr(H). With M = E[J Jᵀ] it maximises the trace bound (objective ``trace``); with
    M = E[J A² Jᵀ], A = (E Jᵀ S⁻¹ J + J_P)⁻¹, the Bayesian Cramér–Rao bound itself
    (``bayesian``). That holds for exact M and H; the forms approximate them.
    ``low-rank`` takes M and H as they are in the span of their ``rank`` leading
    directions, and for multiples of a diagonal outside of it; ``kronecker`` takes them
    for a product of two factors per tensor, without correlation between tensors. The
    cost is met exactly by either. M and H come from public data, so S is fixed before
    any private data are seen. It is full rank: what public data never do still gets
    noise.

    Where derivatives of the update take more than 512 MB they are not kept but computed
    anew whenever they are gone through, in single precision. Then the peak of memory
    is about 2.2 GB for a million parameters with the default options, and grows as
    P · (rank + directions · batch_size).

    Attributes:
        std: σ ≥ 0; the noise costs as much utility as isotropic noise of this standard
            deviation, on public data.
        objective: which bound is maximised.
        metric: utility metric H: ``u2`` is E[g gᵀ] (Chen et al.), ``power`` the
            identity, ``curvature`` the Gauss–Newton matrix.
        form: ``low-rank`` (a diagonal plus a low-rank correction of the diagonal
            optimum) or ``kronecker`` (a product of two factors per tensor).
        rank: of the correction; 0 keeps the diagonal optimum.
        scale_source: ``public``; ``private`` is refused.
        samples: public batches that M is averaged over, at most; H, which is cheaper,
            takes up to 256, or as many as fit in 512 MB: 134 for a million parameters.
        directions: principal components of public inputs along which J is taken.
        batch_size: B of the private batch, which is public; another one is refused.
        iterations: how often M is weighted anew by A, for the objective ``bayesian``;
            the cost of the design grows with it. Three win most; about eight win up to
            a quarter more where the noise is weak (benchmarks/fixed_point.py).
        ridge: added to H, as a share of its mean diagonal; noise where H has no other
            part would be free.
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
@book{bhatia2007positive,
  title = {Positive Definite Matrices},
  author = {Bhatia, Rajendra},
  publisher = {Princeton University Press}, year = {2007}
}
"""

    std: float
    objective: Literal["bayesian", "trace"] = "bayesian"
    metric: UtilityMetric = "u2"
    form: Literal["low-rank", "kronecker"] = "low-rank"
    scale_source: Literal["public", "private"] = "public"
    rank: int = 32
    samples: int = 16
    directions: int = 48
    batch_size: int = 1
    iterations: int = 3
    ridge: float = 1e-3
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        check_noise_options(self.std, self.ridge)
        if self.objective not in ("bayesian", "trace"):
            msg = f"objective is {self.objective!r}; expected 'bayesian' or 'trace'"
            raise InvalidInput(msg)
        if self.form not in ("low-rank", "kronecker"):
            msg = f"form is {self.form!r}; expected 'low-rank' or 'kronecker'"
            raise InvalidInput(msg)
        check_scale_options(self.scale_source, {})
        if self.scale_source == "private":
            raise InvalidInput(_NO_PRIVATE)
        least = {"rank": 0, "samples": 1, "directions": 1, "batch_size": 1}
        least |= {"iterations": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                msg = f"{name} is {getattr(self, name)}; expected at least {smallest}"
                raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return each form of covariance, for batches of two."""
        return tuple(
            cls(std=0.3, form=form, rank=3, samples=2, batch_size=2)
            for form in ("low-rank", "kronecker")
        )

    def idle(self) -> Self:
        """Return noise of std 0."""
        return replace(self, std=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Design S on public data.

        Raises:
            InvalidInput: there are no public data.
        """
        plan = self._plan(task)
        if not self.adds_noise:
            return plan
        batches = public_batches(
            "matrix-optimal-noise", public, self.batch_size, _METRIC_BATCHES, key
        )
        assert public is not None  # checked by public_batches
        shapes = {name: task.parameters()[name].detach() for name in plan.covers}
        metric = public_metric(
            task, batches, self.metric, self.ridge, fold(key, "metric"), plan.covers
        )
        axes, variances = principal_directions(public, self.directions)
        seen = tangents(task, batches[: self.samples], axes, plan.covers)
        prior = variances.repeat(self.batch_size)
        covariance = self._design(seen, metric, shapes, prior, key)
        return self._plan(task, arrays=_arrays(covariance))

    def _design(
        self,
        seen: Tensor | Tangents,
        metric: Metric,
        shapes: Mapping[str, Tensor],
        prior: Tensor,
        key: int,
    ) -> Covariance:
        """Iterate the optimum for M and the M of that optimum."""
        cost = self.std**2 * metric.trace()
        iterations = self.iterations if self.objective == "bayesian" else 0
        if self.form == "kronecker":
            return kronecker_design(seen, metric, shapes, prior, cost, iterations)

        def optimum(weighted: Tensor | Tangents) -> Covariance:
            shape = low_rank_optimum(weighted, metric, shapes, self.rank, key)
            return matched(shape, metric, shapes, cost)

        covariance = optimum(seen)
        for _ in range(iterations):
            spread = posterior_covariance(seen, covariance, shapes, prior)
            del covariance  # two of them at once are the peak of memory
            covariance = optimum(seen @ spread)
        return covariance

    def covariance(self, plan: Plan) -> Covariance:
        """Return S of a calibrated plan."""
        arrays = plan.arrays
        if self.form == "kronecker":
            return KroneckerFactors(
                {name: arrays[f"left/{name}"] for name in plan.covers},
                {name: arrays[f"right/{name}"] for name in plan.covers},
                {name: plan.shapes[name] for name in plan.covers},
            )
        root = {name: arrays[f"root/{name}"] for name in plan.covers}
        return LowRank(root, arrays["basis"], arrays["excess"])

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        if not self.adds_noise:
            return covered
        white = {
            name: torch.randn(
                plan.shapes[name], generator=generator(key, name), dtype=torch.float64
            ).to(covered[name].device)
            for name in plan.covers
        }
        noise = self.covariance(plan).colour(white)
        return {name: t + noise[name].to(t) for name, t in covered.items()}

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Add S to the covariance."""
        del observed
        if not self.adds_noise:
            return law
        return law.plus_noise({}, covariance=self.covariance(plan))

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Count the direction with the least noise; S is made of public data."""
        if not self.adds_noise:
            return before
        least = self.covariance(plan).least()
        return before.plus_noise(dict.fromkeys(plan.covers, least))

    @property
    def correlates_noise(self) -> bool:
        """Whether the noise of one coordinate tells of that of others."""
        return self.adds_noise

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


def _arrays(covariance: Covariance) -> dict[str, Tensor]:
    """Write S as named tensors."""
    if isinstance(covariance, KroneckerFactors):
        left = {f"left/{name}": t for name, t in covariance.left.items()}
        return left | {f"right/{name}": t for name, t in covariance.right.items()}
    assert isinstance(covariance, LowRank)
    roots = {f"root/{name}": t for name, t in covariance.root.items()}
    return {**roots, "basis": covariance.basis, "excess": covariance.excess}
