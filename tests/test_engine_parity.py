"""The engine reproduces the trajectory of Inverting Gradients as published.

The bare loop below makes the choices of the breaching framework, written independently
of the engine; breaching itself agrees to about 1e-6 (benchmarks/parity_breaching.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exhume.attacks.engine.driver import reconstruct
from exhume.attacks.inverting_gradients import InvertingGradients
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.mechanism import Mechanism
from exhume.problem.prior import Density
from exhume.problem.task import Task
from exhume.problem.threat import ThreatModel
from exhume.problem.world import World

WEIGHT = 0.2


def padded_total_variation(x: Tensor) -> Tensor:
    # Zero padding on the right and bottom, mean over all entries, as breaching has it.
    right = F.pad(x, (0, 1, 0, 0))[..., 1:] - x
    down = F.pad(x, (0, 0, 0, 1))[..., 1:, :] - x
    return (right.abs() + down.abs() + 2e-8).mean()


@dataclass(frozen=True)
class PaddedTotalVariation(Density):
    name: ClassVar[str] = "padded-total-variation"

    def energy(self, inputs: Tensor) -> Tensor:
        return WEIGHT * padded_total_variation(inputs)


def lenet(generator: torch.Generator) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(768, 10),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return net


def bare_loop(
    net: nn.Module, gradient: list[Tensor], label: Tensor, x0: Tensor, steps: int
) -> list[float]:
    """Return the objective at every iterate, before each step."""
    x = x0.clone().requires_grad_()
    target = torch.cat([g.flatten() for g in gradient])
    adam = torch.optim.Adam([x], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        adam, [steps // 2.667, steps // 1.6, steps // 1.142], gamma=0.1
    )
    parameters = list(net.parameters())
    values = []
    for _ in range(steps):
        loss = F.cross_entropy(net(x), label)
        own = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in own])
        value = 1 - (flat @ target) / (flat.norm() * target.norm())
        value = value + WEIGHT * padded_total_variation(x)
        (slope,) = torch.autograd.grad(value, x)
        x.grad = slope.sign()
        adam.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(-2.0, 2.0)
        values.append(value.item())
    return values


@pytest.fixture(scope="module")
def case():
    from skimage.data import astronaut
    from skimage.transform import resize

    generator = torch.Generator().manual_seed(7)
    net = lenet(generator)
    crop = resize(astronaut()[:256, 100:356], (32, 32), anti_aliasing=True)
    # Normalised units with mean ½ and standard deviation ¼: the range is [−2, 2].
    photo = torch.tensor(crop.transpose(2, 0, 1), dtype=torch.float32)[None]
    inputs = ((photo - 0.5) / 0.25).clamp(-2, 2)
    label = torch.tensor([3])
    x0 = torch.randn(inputs.shape, generator=generator)
    spec = EventSpec.image(3, 32, 32, low=-2.0, high=2.0)
    world = World(Task(net), Batch(inputs, label, spec), Mechanism(Gradient()))
    return net, world, x0


@pytest.mark.parametrize("steps", [50, 200])
def test_trajectory_equals_a_bare_loop(case, steps):
    net, world, x0 = case
    observation = world.observe()
    problem = ThreatModel("labels-known").reveal(world, observation)
    attack = InvertingGradients(iterations=steps, patience=steps)
    design = attack.design(problem)
    objective = replace(design.objective, priors=(PaddedTotalVariation(),))
    design = replace(design, objective=objective)

    ours = [p.objective for p in reconstruct(problem, design, 0, inputs=x0).trace]
    theirs = bare_loop(
        net, list(observation.values.values()), world.batch.targets, x0, steps
    )

    # One more point than steps: the engine also looks at the last iterate.
    assert len(ours) == steps + 1
    assert ours[:steps] == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert theirs[-1] < 0.5 * theirs[0]
