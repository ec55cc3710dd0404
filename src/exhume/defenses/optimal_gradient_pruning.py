"""Optimal Gradient Pruning: remove the coordinates that tell most for their utility."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.defenses._public_scales import (
    PRIVATE_SCALES,
    check_scale_options,
    mean_squared_sensitivities,
    metric_columns,
    metric_diagonal,
    public_batches,
)
from exhume.defenses.pruning import magnitude_mask, removed_count
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import KeepWhere, Law
from exhume.problem.privacy import Guarantee
from exhume.problem.sensitivity import squared_sensitivities
from exhume.problem.task import Task
from exhume.problem.tree import Tree, flatten, unflatten

if TYPE_CHECKING:
    from exhume.problem.observation import Candidate, ObservationModel

__all__ = ["OptimalGradientPruning", "optimal_mask", "utility_per_information"]

_JUMPS = (
    "the private batch chooses which coordinates are released, so p(O | S) jumps where "
    "that choice changes and has no Fisher information"
)


@formula(
    r"s_i = h_i^2 / a_i^2",
    reference="Chen, Gursoy and Lei 2024, Optimal Gradient Pruning (greedy knapsack)",
)
def utility_per_information(sensitivity: Tensor, metric: Tensor) -> Tensor:
    """Return what each coordinate brings, in utility per Fisher information.

    Keeping the coordinates with the largest ratio maximises Σ h_i² for a budget on
    Σ a_i², up to one coordinate. One that tells nothing is worth keeping whatever it
    brings.

    Args:
        sensitivity: a_i² ≥ 0, shape [P].
        metric: h_i² ≥ 0, shape [P].

    Returns:
        shape [P], in [0, ∞].
    """
    return torch.where(sensitivity > 0, metric / sensitivity, torch.inf)


def optimal_mask(sensitivity: Tree, metric: Tree, removed: int) -> Tree:
    """Mark all coordinates but the k with the least utility per information.

    Args:
        sensitivity: a_i², by name.
        metric: h_i², by name.
        removed: k; exactly k entries are False over all tensors, ties go by index.
    """
    score = utility_per_information(flatten(sensitivity), flatten(metric))
    return unflatten(magnitude_mask(score, removed), metric)


@dataclass(frozen=True, kw_only=True)
class OptimalGradientPruning(Defense):
    """Set to zero the coordinates with the largest a_i/h_i, ranked over all tensors.

    a_i² = E‖∇_x g_i‖² is what a coordinate tells about the data, h_i² = E g_i² what it
    brings to the first-order decrease of the loss. Both come from public data, so the
    mask is public and does not depend on private data. With ``scale_source="private"``
    they come from the private batch, and the pattern of zeros tells about it.

    The mask maximises utility for a trace of the Fisher information. At equal utility
    that need not raise the Cramér–Rao bound itself: compare both.

    Attributes:
        ratio: ρ in [0, 1); exactly ⌊ρP⌋ of the P covered entries are removed.
        scale_source: ``public`` or ``private``. Averages over past releases are no
            third one: a_i is a derivative by the data, which no update holds.
        probes: random directions per batch in the sketch of a_i.
        samples: public batches to average over, at most.
        batch_size: B of the private batch, which is public; another one is refused.
        only: glob patterns of the tensors that are pruned.

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

    ratio: float
    scale_source: Literal["public", "private"] = "public"
    probes: int = 32
    samples: int = 64
    batch_size: int = 1
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            msg = f"ratio is {self.ratio}; expected a fraction in [0, 1), e.g. 0.9"
            raise InvalidInput(msg)
        counts = {
            "probes": self.probes,
            "samples": self.samples,
            "batch_size": self.batch_size,
        }
        check_scale_options(self.scale_source, counts)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a mask from few public gradients, for batches of two."""
        return (cls(ratio=0.4, probes=2, samples=2, batch_size=2),)

    def idle(self) -> Self:
        """Return a pruning that removes nothing."""
        return replace(self, ratio=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Choose the mask on public data.

        Raises:
            InvalidInput: there are no public data.
        """
        plan = self._plan(task)
        shapes = {name: task.parameters()[name].detach() for name in plan.covers}
        removed = removed_count(self.ratio, sum(t.numel() for t in shapes.values()))
        if removed == 0:
            return self._plan(task, numbers={"removed": 0})
        if self.scale_source == "private":
            warnings.warn(PRIVATE_SCALES, UserWarning, stacklevel=2)
        batches = public_batches(
            "optimal-gradient-pruning", public, self.batch_size, self.samples, key
        )
        a2 = mean_squared_sensitivities(task, batches, self.probes, key)
        columns = metric_columns(task, batches, "u2", fold(key, "metric"), plan.covers)
        own = {name: a2[name] for name in plan.covers}
        mask = optimal_mask(own, metric_diagonal(columns, own), removed)
        return self._plan(task, numbers={"removed": removed}, arrays=mask)

    def personalise(
        self,
        task: Task,
        model: ObservationModel,
        candidate: Candidate,
        plan: Plan,
        key: int,
    ) -> Plan:
        """Choose the mask on the private batch, if asked to."""
        removed = int(plan.numbers["removed"])
        if self.scale_source == "public" or removed == 0:
            return plan
        a2 = squared_sensitivities(
            task,
            model,
            candidate.inputs,
            candidate.targets,
            probes=self.probes,
            key=key,
        )
        exact = model.forward(task, candidate)
        h2 = {name: exact[name].detach().square() for name in plan.covers}
        mask = optimal_mask({name: a2[name] for name in plan.covers}, h2, removed)
        return replace(plan, arrays=mask)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        del key
        return KeepWhere(plan.arrays)(covered)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Mask the law; a private mask is seen from the zeros of the release."""
        if plan.numbers["removed"] == 0:
            return law
        if self.scale_source == "public":
            return law.masked(plan.arrays)
        if observed is not None:
            shown = {name: observed[name] != 0 for name in plan.covers}
            return replace(law.masked(shown), irregular=_JUMPS)
        # Hidden behind later noise, the public mask is the best guess of the private.
        return replace(law.masked(plan.arrays), irregular=_JUMPS)

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Count a public mask; a private one moves with the data."""
        if plan.numbers["removed"] == 0:
            return before
        if self.scale_source == "private":
            return before.void("the mask depends on the private data")
        return before.masked(plan.arrays)

    @property
    def designed_for(self) -> int | None:
        """B of the private batch, if anything is removed."""
        return self.batch_size if self.ratio > 0 else None

    @property
    def preserves_zeros(self) -> bool:
        """A ratio of 0 removes nothing."""
        return self.ratio == 0
