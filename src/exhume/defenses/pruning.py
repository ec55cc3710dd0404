"""Pruning: release only part of the update, the largest entries or random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Defense, Plan, Stage
from exhume.problem.law import KeepWhere, Law, TreeMap
from exhume.problem.privacy import Guarantee
from exhume.problem.task import Task
from exhume.problem.tree import Tree, flatten, size, unflatten

__all__ = [
    "KeepLargest",
    "KeepLargestOfEach",
    "Pruning",
    "magnitude_mask",
    "removed_count",
]


_JUMPS = (
    "magnitude pruning chooses the released coordinates by the private gradient, so "
    "p(O | S) jumps where that choice changes and has no Fisher information"
)
_SELECTS_NOISE = (
    "magnitude pruning after noise keeps the coordinates whose noise is large, so the "
    "released values are not Gaussian"
)


@formula(
    r"k = \lfloor \rho P \rfloor",
    reference="Aji and Heafield, EMNLP 2017, section 3",
)
def removed_count(ratio: float, count: int) -> int:
    """Return how many of P entries are removed at a pruning ratio.

    Args:
        ratio: ρ in [0, 1).
        count: P, the number of entries over all covered tensors.
    """
    return int(ratio * count)


@formula(
    r"m_j = \mathbf 1\bigl[\,\#\{i : (|g_i|, i) \le (|g_j|, j)\} > k\,\bigr]",
    reference="Aji and Heafield, EMNLP 2017, section 3; Lin et al., ICLR 2018",
)
def magnitude_mask(values: Tensor, removed: int) -> Tensor:
    """Mark all entries but the k smallest in magnitude; ties go by index.

    Args:
        values: g, shape [P].
        removed: k, 0 ≤ k ≤ P; exactly k entries are False, also among ties.

    Returns:
        m, bool, shape [P].
    """
    magnitude = values.detach().abs()
    if removed == 0:
        return torch.ones_like(magnitude, dtype=torch.bool)
    threshold = magnitude.kthvalue(removed).values
    below, tied = magnitude < threshold, magnitude == threshold
    among_ties = removed - below.sum()
    return ~(below | (tied & (tied.cumsum(0) <= among_ties)))


@dataclass(frozen=True)
class KeepLargest:
    """The map that zeroes the k smallest entries of several tensors together.

    Attributes:
        removed: k.
        names: tensors that are ranked together; others pass.
    """

    removed: int
    names: tuple[str, ...]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the pruned tree, differentiable where the choice does not change."""
        covered = {name: tree[name] for name in self.names}
        mask = magnitude_mask(flatten(covered), self.removed)
        return {**tree, **KeepWhere(unflatten(mask, covered))(covered)}


@dataclass(frozen=True)
class KeepLargestOfEach:
    """The map that zeroes the smallest entries of every tensor by itself.

    Attributes:
        removed: name → k of this tensor; tensors that are not named pass.
    """

    removed: Mapping[str, int]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the pruned tree, differentiable where the choice does not change."""
        pruned = dict(tree)
        for name, count in self.removed.items():
            pruned = KeepLargest(count, (name,))(pruned)
        return pruned


_MAGNITUDE = """\
@inproceedings{aji2017sparse,
  title = {Sparse Communication for Distributed Gradient Descent},
  author = {Aji, Alham Fikri and Heafield, Kenneth},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  pages = {440--445},
  year = {2017},
}
@inproceedings{lin2018deep,
  title = {Deep Gradient Compression: Reducing the Communication Bandwidth for
           Distributed Training},
  author = {Lin, Yujun and Han, Song and Mao, Huizi and Wang, Yu and Dally, William J.},
  booktitle = {International Conference on Learning Representations},
  year = {2018},
}
"""
_RANDOM = """\
@article{konecny2016federated,
  title = {Federated Learning: Strategies for Improving Communication Efficiency},
  author = {Kone{\\v{c}}n{\\'y}, Jakub and McMahan, H. Brendan and Yu, Felix X. and
            Richt{\\'a}rik, Peter and Suresh, Ananda Theertha and Bacon, Dave},
  journal = {arXiv preprint arXiv:1610.05492},
  year = {2016},
}
"""


@dataclass(frozen=True, kw_only=True)
class Pruning(Defense):
    """Set a fraction of the covered entries to zero, over all tensors or of each.

    ``magnitude`` removes the smallest entries, which is top-k sparsification with
    k = P − ⌊ρP⌋: all tensors are ranked together, as Aji and Heafield do, or every
    tensor by itself (``per_tensor``), as Deep Gradient Compression does; ties go by
    index. Where the zeros of the release are
    visible, the law takes every zero for a removed entry. An entry that was kept and
    happens to be exactly zero (ReLU networks have many) is then taken for void as well:
    that gives up what this zero says, and is never wrong.

    ``random`` removes entries drawn in ``calibrate`` from a seed that client and server
    share, so the mask is public and independent of the data. Nothing is rescaled. Every
    step of a training draws its own mask (``redraw``), which its clients share; the
    paper draws one for each of them.

    Attributes:
        ratio: ρ in [0, 1); exactly ⌊ρP⌋ of the P covered entries are removed.
        kind: which entries go.
        per_tensor: remove the fraction ρ of every tensor by itself, ⌊ρ P_t⌋ of P_t.
        only: glob patterns of the tensors that are pruned.

    Raises:
        InvalidInput: ``ratio`` or ``kind`` is out of range.
    """

    stage: ClassVar[Stage] = Stage.UPDATE
    variant_bibtex: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "kind": {"magnitude": _MAGNITUDE, "random": _RANDOM}
    }

    ratio: float
    kind: Literal["magnitude", "random"] = "magnitude"
    per_tensor: bool = False
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            msg = f"ratio is {self.ratio}; expected a fraction in [0, 1), e.g. 0.9"
            raise InvalidInput(msg)
        if self.kind not in ("magnitude", "random"):
            msg = f"kind is {self.kind!r}; expected 'magnitude' or 'random'"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return each way to choose what is removed."""
        return (
            cls(ratio=0.4),
            cls(ratio=0.4, kind="random"),
            cls(ratio=0.4, per_tensor=True),
        )

    def idle(self) -> Self:
        """Return a pruning that removes nothing."""
        return replace(self, ratio=0.0)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """Count the entries to remove, and draw the mask if it is random."""
        del public
        parameters = task.parameters()
        covered = {name: parameters[name] for name in self.covered(parameters)}
        counts = self._counts({name: tuple(p.shape) for name, p in covered.items()})
        removed = sum(counts.values())
        drawn = self.kind == "random" and removed > 0
        arrays = self._random_masks(covered, key) if drawn else {}
        return self._plan(task, numbers={"removed": removed}, arrays=arrays)

    def redraw(self, plan: Plan, key: int) -> Plan:
        """Draw the public mask of another step; the largest entries need none."""
        if not plan.arrays:
            return plan
        return replace(plan, arrays=self._random_masks(plan.arrays, key))

    def _random_masks(self, like: Mapping[str, Tensor], key: int) -> Tree:
        """Draw masks of the shapes and devices of some tensors."""
        arrays: Tree = {}
        counts = self._counts({name: tuple(t.shape) for name, t in like.items()})
        for names, count in counts.items():
            group = {name: like[name] for name in names}
            own = names if self.per_tensor else ()
            arrays |= _random_mask(group, count, generator(key, "mask", *own))
        return arrays

    def _counts(
        self, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[tuple[str, ...], int]:
        """Return how many entries go, by group of tensors that are ranked together."""
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        groups = [(name,) for name in sizes] if self.per_tensor else [tuple(sizes)]
        return {
            names: removed_count(self.ratio, sum(sizes[n] for n in names))
            for names in groups
        }

    def _keep_largest(self, plan: Plan) -> TreeMap:
        counts = self._counts({name: plan.shapes[name] for name in plan.covers})
        if self.per_tensor:
            return KeepLargestOfEach({n: k for (n,), k in counts.items()})
        return KeepLargest(int(plan.numbers["removed"]), plan.covers)

    def _release(self, covered: Tree, plan: Plan, key: int) -> Tree:
        del key
        if self.kind == "random":
            return KeepWhere(plan.arrays)(covered)
        return self._keep_largest(plan)(covered)

    def push(self, law: Law, plan: Plan, observed: Mapping[str, Tensor] | None) -> Law:
        """Mask the law, or prune the candidate's own update if the zeros are hidden."""
        if plan.numbers["removed"] == 0:
            return law
        if self.kind == "random":
            return law.masked(plan.arrays)
        if observed is None:
            pruned = law.then(self._keep_largest(plan))
        else:
            pruned = law.masked({name: observed[name] != 0 for name in plan.covers})
        # Noise on every coordinate blurs the choice: no jumps, but no Gaussian either.
        if not law.noise_covers(plan.covers):
            pruned = replace(pruned, irregular=_JUMPS)
        if law.noisy_on(plan.covers):
            pruned = replace(pruned, not_gaussian=_SELECTS_NOISE)
        return pruned

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Keep the sensitivity, unless the examples decide together what is removed.

        A random mask is public. The largest entries of one client's clipped update have
        no larger norm; but one example can change which entries of a sum are largest.
        """
        if plan.numbers["removed"] == 0:
            return before
        if self.kind == "random":
            return before.masked(plan.arrays)
        if before.unit == "client":
            return before.processed()
        return super().account(before, plan)

    @property
    def preserves_zeros(self) -> bool:
        """A ratio of 0 removes nothing."""
        return self.ratio == 0


def _random_mask(covered: Tree, removed: int, source: torch.Generator) -> Tree:
    """Mark all entries but ``removed`` ones, drawn without replacement."""
    total = size(covered)
    mask = torch.ones(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=source)[:removed]] = False
    cut = unflatten(mask, covered)
    return {name: m.to(covered[name].device) for name, m in cut.items()}
