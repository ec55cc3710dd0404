"""Small worlds for tests: real networks on smooth random images, made from keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import ObservationModel
from exhume.problem.prior import Density
from exhume.problem.task import Normalisation, Task
from exhume.problem.threat import ThreatModel
from exhume.problem.world import World

GRAY = EventSpec.image(1, 8, 8)
COLOUR = EventSpec.image(3, 8, 8)
VECTOR = EventSpec.vector(12)


def smooth(spec: EventSpec, count: int, key: int) -> Tensor:
    """Draw smooth images in the range; standard normal numbers of any other kind."""
    local = generator(key, "toy", "examples")
    if spec.grid is None:
        return spec.clamp(torch.randn(count, *spec.shape, generator=local))
    channels, height, width = spec.grid
    coarse = torch.rand(count, channels, 4, 4, generator=local)
    drawn = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    assert spec.low is not None
    assert spec.peak is not None
    return spec.low + spec.peak * drawn


def seeded(model: nn.Module, key: int, scale: float | None = None) -> nn.Module:
    """Give every layer fresh weights from a key (uniform ±scale, or PyTorch's own)."""
    local = generator(key, "toy", "weights")
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
                continue
            limit = scale or (weight.numel() / len(weight)) ** -0.5
            for p in module.parameters(recurse=False):
                p.uniform_(-limit, limit, generator=local)
    return model


def mlp(spec: EventSpec, classes: int = 5, width: int = 24, *, bias=True, key=0):
    return seeded(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(spec.dimension, width, bias=bias),
            nn.ReLU(),
            nn.Linear(width, classes, bias=bias),
        ),
        key,
    )


def smooth_mlp(spec: EventSpec, classes: int = 5, width: int = 24, key: int = 0):
    return seeded(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(spec.dimension, width),
            nn.Tanh(),
            nn.Linear(width, classes),
        ),
        key,
    )


def homogeneous(spec: EventSpec, classes: int = 5, width: int = 24, key: int = 0):
    """A ReLU network with one bias and a small first layer, for trained weights."""
    net = seeded(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(spec.dimension, width),
            nn.ReLU(),
            nn.Linear(width, classes, bias=False),
        ),
        key,
    )
    with torch.no_grad():
        for parameter in net[1].parameters():  # type: ignore[index]
            parameter.mul_(0.01)
    return net


def transfer(spec: EventSpec, classes: int = 5, width: int = 24, key: int = 0):
    """A frozen smooth layer of more outputs than inputs under ``smooth_mlp``'s."""
    features = spec.dimension + 16
    layers = [nn.Flatten(), nn.Linear(spec.dimension, features), nn.Tanh()]
    backbone = nn.Sequential(*layers).requires_grad_(requires_grad=False)
    head = [nn.Linear(features, width), nn.Tanh(), nn.Linear(width, classes)]
    return seeded(nn.Sequential(backbone, *head), key)


def convolutional(spec: EventSpec, classes: int = 5, *, norm=False, key=0):
    """A convolution first, so that there is no closed form for the input."""
    channels, height, width = spec.shape
    layers: list[nn.Module] = [nn.Conv2d(channels, 6, 3, padding=1, stride=2)]
    if norm:
        layers.append(nn.BatchNorm2d(6))
    layers += [nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * height * width // 4, classes)]
    return seeded(nn.Sequential(*layers), key)


def make_world(
    spec: EventSpec = GRAY,
    *,
    labels: tuple[int, ...] = (2,),
    model: nn.Module | None = None,
    mode: str = "eval",
    normalise: Normalisation | None = None,
    defenses: tuple = (),
    public: int = 20,
    prior: Density | None = None,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    observation: ObservationModel | None = None,
    key: int = 0,
) -> World:
    inputs = smooth(spec, len(labels) + public, key).to(dtype)
    gallery = torch.randint(classes, (public,), generator=generator(key, "toy", "y"))
    network = mlp(spec, classes, key=key) if model is None else model
    return World(
        Task(network.to(dtype), mode=mode, normalise=normalise),  # type: ignore[arg-type]
        Batch(inputs[: len(labels)], torch.tensor(labels), spec),
        Mechanism(observation or Gradient(), defenses),
        Batch(inputs[len(labels) :], gallery, spec) if public else None,
        prior,
    )


def reveal(world: World, threat: str = "labels-known", key: int = 0) -> Problem:
    return ThreatModel(threat).reveal(world, world.observe(key))


class DeadPixels(nn.Module):
    """Multiplies the input by a fixed mask: the dead pixels leave no trace at all."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.mask
