"""Chance level: the public examples whose own gradients are nearest to the observed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.attack import Attack
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.task import Task
from exhume.problem.tree import Tree

__all__ = ["NearestPublic"]

# Coordinates of each tensor that are compared: enough for a ranking, little memory.
_COORDINATES = 4096


@dataclass(frozen=True, kw_only=True)
class NearestPublic(Attack):
    """Answer with public examples: what a gallery alone explains of the update.

    A greedy choice makes the mean of the examples' own gradients, pushed through the
    defense where it is known, nearest to the observation. An attack that does no better
    has recovered what is typical, not what is private.

    Attributes:
        gradients: how many candidate gradients may be computed.
    """

    gradients: int = 200

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE, Fact.PUBLIC_DATA}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset({Fact.LABELS, Fact.DEFENSE})
    baseline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gradients < 1:
            msg = f"gradients is {self.gradients}; allow at least one"
            raise InvalidInput(msg)

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Compare gradients on sampled coordinates and choose greedily."""
        watch = Stopwatch()
        batch_size: int = problem.require(Fact.BATCH_SIZE)
        public: Batch = problem.require(Fact.PUBLIC_DATA)
        pairs = list(self._pairs(problem, public))
        coordinates = _sampled(problem.observed, key)
        scale = _scales(problem)
        target = _sketch(problem.observed, coordinates, scale)
        rows = torch.stack(
            [
                _sketch(_gradient(problem, public, i, y), coordinates, scale)
                for i, y in pairs
            ]
        )
        watch.count(len(pairs))
        chosen = _greedy(rows, target, pairs, problem, batch_size)
        index = torch.tensor([pairs[c][0] for c in chosen])
        like = next(t for t in problem.observed.values() if t.is_floating_point())
        return Reconstruction(
            inputs=problem.spec.clamp(public.inputs[index].to(like)),
            targets=torch.stack([pairs[c][1] for c in chosen]).to(like.device),
            objective=None,
            outcome=Outcome.CLOSED_FORM,
            cost=watch.cost(),
            adaptive=problem.law is not UNKNOWN,
            notes=(f"Nearest of {len(pairs)} candidate gradients.",),
        )

    def _pairs(self, problem: Problem, public: Batch) -> Iterator[tuple[int, Tensor]]:
        """Pair public examples with the labels that they could have had."""
        if problem.targets is UNKNOWN:
            for i in range(min(len(public), self.gradients)):
                yield i, public.targets[i]
            return
        labels = problem.targets.unique(dim=0)
        count = max(1, self.gradients // len(labels))
        for i in range(min(len(public), count)):
            for label in labels:
                yield i, label


def _gradient(problem: Problem, public: Batch, index: int, label: Tensor) -> Tree:
    task: Task = problem.require(Fact.WEIGHTS)
    x = public.inputs[index : index + 1].to(task.device, task.dtype)
    y = label[None].to(task.device)
    if task.mode == "train" and task.running_statistics:
        # BatchNorm in train mode refuses a single example; a pair of twins will do.
        x, y = torch.cat([x, x]), torch.cat([y, y])
    tree = problem.require(Fact.LOCAL_SCHEDULE).forward(task, Candidate(x, y))
    tree = {name: t.detach() for name, t in tree.items()}
    return tree if problem.law is UNKNOWN else problem.law.mean(tree)


def _sampled(observed: Tree, key: int) -> dict[str, Tensor]:
    local = generator(key, "nearest-public", "coordinates")
    return {
        name: torch.randperm(t.numel(), generator=local)[:_COORDINATES].to(t.device)
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
    # A void coordinate is 0 on both sides where the mask is known.
    return torch.cat(
        [tree[n].flatten()[index] / scale[n] for n, index in coordinates.items()]
    )


def _greedy(
    rows: Tensor,
    target: Tensor,
    pairs: list[tuple[int, Tensor]],
    problem: Problem,
    batch_size: int,
) -> list[int]:
    """Choose B rows whose mean is near the target, each label as often as it occurs."""
    left = None if problem.targets is UNKNOWN else list(problem.targets)
    chosen: list[int] = []
    total = torch.zeros_like(target)
    for step in range(1, batch_size + 1):
        # Partial sums aim at their share, so that early picks do not overshoot.
        error = (total + rows - target * step).square().sum(dim=1)
        used = {pairs[c][0] for c in chosen}
        fresh = len(used) < len({i for i, _ in pairs})
        for c, (i, y) in enumerate(pairs):
            taken = fresh and i in used
            if taken or (left is not None and not any(_equal(y, v) for v in left)):
                error[c] = torch.inf
        best = int(error.argmin())
        chosen.append(best)
        total = total + rows[best]
        if left is not None:
            y = pairs[best][1]
            left.pop(next(k for k, v in enumerate(left) if _equal(y, v)))
    return chosen


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a == b).all())
