"""Recognise public examples: those whose own gradients are nearest to the observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.aggregate import Aggregate
from exhume.problem.attack import Attack
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Candidate, ObservationKind
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["NearestPublic"]

# Coordinates of each tensor that are compared: enough for a ranking, little memory.
_COORDINATES = 4096
# Rounds in which each choice is made again, given the others.
_SWEEPS = 5


@dataclass(frozen=True, kw_only=True)
class NearestPublic(Attack):
    """Answer with public examples: what a gallery alone explains of the update.

    A greedy choice, revised a few times, makes the mean of the examples' own gradients
    (pushed through the defense where it is known) nearest to the observation. It reads
    the observation, so it is no chance level; but it can only recognise what is public,
    or nearly so.

    Attributes:
        gradients: how many candidate gradients may be computed.
    """

    gradients: int = 200

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE, Fact.PUBLIC_DATA}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.LABELS, Fact.LEARNING_RATE, Fact.BATCH_ORDER, Fact.DEFENSE}
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset({"gradient", "update"})
    recognises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gradients < 1:
            msg = f"gradients is {self.gradients}; allow at least one"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return one that takes few gradients."""
        return (cls(gradients=20),)

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Compare gradients on sampled coordinates and choose greedily."""
        watch = Stopwatch()
        batch_size: int = problem.require(Fact.BATCH_SIZE)
        public: Batch = problem.require(Fact.PUBLIC_DATA)
        pool, targets = self._pool(problem, public, batch_size)
        coordinates = _sampled(problem.observed, key)
        scale = _scales(problem)
        target = _sketch(problem.observed, coordinates, scale)
        rows = torch.stack(
            [
                _sketch(_gradient(problem, x, y), coordinates, scale)
                for x, y in zip(public.inputs[pool.examples], targets, strict=True)
            ]
        )
        watch.count(len(rows))
        chosen = _choose(rows, target, pool)
        inputs = public.inputs[pool.examples[chosen]].to(target)
        return Reconstruction(
            inputs=problem.spec.clamp(inputs),
            targets=targets[chosen].to(target.device),
            objective=None,
            outcome=Outcome.CLOSED_FORM,
            cost=watch.cost(),
            adaptive=problem.law_is_used,
            notes=(f"Nearest of {len(rows)} candidate gradients.",),
        )

    def _pool(
        self, problem: Problem, public: Batch, batch_size: int
    ) -> tuple[_Pool, Tensor]:
        """Pair public examples with the labels that they could have had."""
        if problem.targets is UNKNOWN:
            examples = torch.arange(min(len(public), self.gradients))
            return _Pool(examples, examples, None, batch_size), public.targets[examples]
        labels, counts = problem.targets.cpu().unique(dim=0, return_counts=True)
        tried = min(len(public), max(1, self.gradients // len(labels)))
        pairs = torch.cartesian_prod(torch.arange(tried), torch.arange(len(labels)))
        examples, members = pairs.unbind(dim=1)
        return _Pool(examples, members, counts, batch_size), labels[members]


def _gradient(problem: Problem, example: Tensor, label: Tensor) -> Tree:
    task: Task = problem.require(Fact.WEIGHTS)
    x = example[None].to(task.device, task.dtype)
    y = label[None].to(task.device)
    if task.mode == "train" and task.running_statistics:
        # BatchNorm in train mode refuses a single example; a pair of twins will do.
        x, y = torch.cat([x, x]), torch.cat([y, y])
    model = problem.require(Fact.LOCAL_SCHEDULE)
    if isinstance(model, Aggregate):
        # Every client needs examples of its own; the mean is over equal ones.
        copies = problem.require(Fact.BATCH_SIZE)
        x, y = torch.cat([x] * copies), torch.cat([y] * copies)
    tree = model.forward(task, Candidate(x, y))
    tree = {name: t.detach() for name, t in tree.items()}
    return tree if problem.law is UNKNOWN else problem.law.mean(tree)


def _sampled(observed: Tree, key: int) -> dict[str, Tensor]:
    return {
        name: torch.randperm(
            t.numel(), generator=generator(key, "nearest-public", name)
        )[:_COORDINATES].to(t.device)
        for name, t in observed.items()
    }


def _scales(problem: Problem) -> dict[str, Tensor]:
    """Return the noise of each tensor, or its root mean square where there is none."""
    law = None if problem.law is UNKNOWN else problem.law
    scale = {}
    for name, t in problem.observed.items():
        size = t.square().mean().sqrt()
        if law is not None and name in law.variance:
            size = torch.maximum(law.variance[name].to(t).mean().sqrt(), 1e-3 * size)
        scale[name] = size.clamp_min(torch.finfo(t.dtype).tiny)
    return scale


def _sketch(
    tree: Tree, coordinates: dict[str, Tensor], scale: dict[str, Tensor]
) -> Tensor:
    """Stack sampled coordinates so that squared distances keep their expectation."""
    # A void coordinate is 0 on both sides where the mask is known.
    return torch.cat(
        [
            tree[n].flatten()[index] / scale[n] * (tree[n].numel() / len(index)) ** 0.5
            for n, index in coordinates.items()
        ]
    )


def _choose(rows: Tensor, target: Tensor, pool: _Pool) -> list[int]:
    """Choose B rows whose mean is near the target: greedily, then one by one again."""
    chosen: list[int] = []
    for _ in range(pool.batch_size):
        chosen.append(_best(rows, target, pool, chosen))
    for _ in range(_SWEEPS if pool.batch_size > 1 else 0):
        before = list(chosen)
        for position in range(len(chosen)):
            others = chosen[:position] + chosen[position + 1 :]
            chosen[position] = _best(rows, target, pool, others)
        if chosen == before:
            break
    return chosen


def _best(rows: Tensor, target: Tensor, pool: _Pool, others: list[int]) -> int:
    """Return the row that, together with others, is nearest to its share of the target.

    The target is a mean over B rows; n of them should sum to n times as much.
    """
    sums = rows + rows[others].sum(dim=0)
    error = (sums - target * (len(others) + 1)).square().sum(dim=1)
    barred = ~pool.allowed(others).to(error.device)
    return int(error.masked_fill(barred, torch.inf).argmin())


@dataclass(frozen=True, eq=False)
class _Pool:
    """Candidates: public examples, each with a label that it could have had.

    Attributes:
        examples: index of the public example of each candidate, shape [N].
        labels: label of each candidate as an index into the distinct ones, shape [N].
        counts: how often each distinct label occurs in the batch; None if unknown.
        batch_size: B.
    """

    examples: Tensor
    labels: Tensor
    counts: Tensor | None
    batch_size: int

    def allowed(self, taken: list[int]) -> Tensor:
        """Mark candidates that may join: fresh examples of labels that are left."""
        used = torch.isin(self.examples, self.examples[taken])
        fresh = ~used if not bool(used.all()) else used
        if self.counts is None:
            return fresh
        left = self.counts - torch.bincount(
            self.labels[taken], minlength=len(self.counts)
        )
        return fresh & (left > 0)[self.labels]
