"""A tiny problem for defenses: a network of four numbers, a batch of two."""

from __future__ import annotations

import torch
from torch import nn

from exhume import Batch, EventSpec, Task
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Defense
from exhume.problem.observation import Candidate


def small_task(width: int = 3) -> Task:
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).double()
    values = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values)
    return Task(net)


TASK = small_task()


def tree_like(task: Task, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict:
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=source, dtype=torch.float64).to(dtype)
        for name, p in task.parameters().items()
    }


TREE = tree_like(TASK)
PUBLIC = Batch(
    torch.randn(40, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64),
    torch.arange(40) % 2,
    EventSpec.vector(4),
)
BATCH = Batch(
    torch.tensor([[1.0, -0.5, 2.0, 0.3], [-1.5, 0.7, 0.1, 1.1]]).double(),
    torch.tensor([0, 1]),
    EventSpec.vector(4),
)


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def storage(tree: dict) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree.values()}


WHOLE = Candidate(BATCH.inputs, BATCH.targets)


def personal(defense: Defense) -> bool:
    """Say whether the client completes the plan from its private batch."""
    plan = defense.calibrate(TASK, PUBLIC, 0)
    return defense.personalise(TASK, Gradient(), WHOLE, plan, 5) is not plan
