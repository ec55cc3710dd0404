"""Worlds of the engine's tests: small networks on smooth images and vectors."""

from __future__ import annotations

import torch
from torch import nn

from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Normalisation, Task
from exhume.problem.threat import ThreatModel
from exhume.problem.tree import Tree
from exhume.problem.world import World


def network(spec: EventSpec, classes: int = 4, *, batch_norm: bool = False):
    torch_rng = generator(1, "network")
    if spec.kind == "vector":
        layers = [nn.Linear(spec.dimension, 32), nn.Sigmoid(), nn.Linear(32, classes)]
    else:
        channels, height, width = spec.shape
        middle = [nn.BatchNorm2d(6)] if batch_norm else []
        layers = [
            nn.Conv2d(channels, 6, 3, padding=1),
            *middle,
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(6 * height * width, classes),
        ]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=torch_rng)
    return net


def make_world(
    spec: EventSpec | None = None,
    labels: tuple[int, ...] = (2,),
    *,
    dtype: torch.dtype = torch.float32,
    mode: str = "eval",
    batch_norm: bool = False,
    targets: torch.Tensor | None = None,
    normalise: Normalisation | None = None,
) -> World:
    spec = spec or EventSpec.image(1, 8, 8)
    draw = torch.rand((len(labels), *spec.shape), generator=generator(2, "truth"))
    if spec.kind == "image":
        coarse = draw[..., :3, :3]
        draw = nn.functional.interpolate(coarse, spec.shape[1:], mode="bilinear")
    net = network(spec, batch_norm=batch_norm).to(dtype)
    task = Task(net, mode=mode, normalise=normalise)  # type: ignore[arg-type]
    targets = torch.tensor(labels) if targets is None else targets
    return World(task, Batch(draw.to(dtype), targets, spec), Mechanism(Gradient()))


def make_problem(world: World, threat: str = "labels-known") -> Problem:
    return ThreatModel(threat).reveal(world, world.observe())


def tree(*arrays: list[float]) -> Tree:
    return {f"t{i}": torch.tensor(a, dtype=torch.float64) for i, a in enumerate(arrays)}
