"""Small worlds that the suites share, made from keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from exhume import Batch, EventSpec, Mechanism, Task, World
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.release import Observation


def normal(*shape: int, key: int) -> Tensor:
    return torch.randn(shape, generator=generator(key), dtype=torch.float64)


def gaussian_prior(std: float, dimension: int) -> GaussianDensity:
    variance = std**2 * torch.eye(dimension, dtype=torch.float64)
    mean = torch.full((dimension,), 0.5, dtype=torch.float64)
    return GaussianDensity.from_covariance(mean, variance)


def network_world(*defenses, activation=None, batch_size=1, inputs=None) -> World:
    """Make a smooth network on vectors of six numbers, with a Gaussian prior."""
    net = nn.Sequential(nn.Linear(6, 10), activation or nn.Tanh(), nn.Linear(10, 4))
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(0.5 * normal(*p.shape, key=index))
    if inputs is None:
        inputs = normal(batch_size, 6, key=9).float()
    batch = Batch(inputs, torch.arange(batch_size) % 4, EventSpec.vector(6))
    mechanism = Mechanism(Gradient(), defenses)
    return World(Task(net), batch, mechanism, prior=gaussian_prior(0.5, 6))


def defended_world(std: float, **options) -> World:
    """Make a world to which every bound applies: clipped, then noisy."""
    return network_world(Clipping(max_norm=0.1), GaussianNoise(std=std), **options)


def random_world(defenses: Callable[[float, int], tuple], size: int, key: int) -> World:
    """Draw a smooth network, prior, labels and noise level; then inputs of the prior.

    Args:
        defenses: makes a stack from a noise level and the batch size.
        size: B.
        key: of everything.
    """
    classes, public = 5, 48
    local = generator(key, "world")

    def normal(*shape):
        return torch.randn(shape, generator=local, dtype=torch.float64)

    def choice(low, high):
        return int(torch.randint(low, high, (), generator=local))

    dimension, width = choice(3, 6), choice(12, 20)
    activations = (nn.Tanh, nn.Sigmoid, nn.Softplus)
    net = nn.Sequential(
        nn.Linear(dimension, width),
        activations[choice(0, len(activations))](),
        nn.Linear(width, classes),
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(normal(*p.shape) / p.shape[-1] ** 0.5)
    root = normal(dimension, dimension) / dimension**0.5
    covariance = root @ root.T + 0.1 * torch.eye(dimension).double()
    prior = GaussianDensity.from_covariance(normal(dimension), covariance / 4)
    std = 10 ** float(-3 + 2.5 * torch.rand((), generator=local))
    labels = torch.randperm(classes, generator=local)[:size]
    spec = EventSpec.vector(dimension)
    batch = Batch(prior.sample(size, key), labels, spec)
    # The designs of noise read public data, which here are of the same distribution.
    known = torch.randint(0, classes, (public,), generator=local)
    gallery = Batch(prior.sample(public, fold(key, "public")), known, spec)
    mechanism = Mechanism(Gradient(), defenses(std, size))
    return World(Task(net), batch, mechanism, gallery, prior)


def observations(
    world: World, key: int, count: int
) -> Iterator[tuple[World, Observation]]:
    """Draw data of the prior and noise again and again; the plans stay those of key."""
    plans = world.plans(key)
    for draw in range(count):
        inputs = world.prior.sample(len(world.batch), fold(key, "truth", draw))
        batch = replace(world.batch, inputs=inputs)
        secret = fold(key, "release", draw)
        values = world.mechanism.values(world.task, batch, secret, plans)
        yield replace(world, batch=batch), Observation(values, {}, plans, key)
