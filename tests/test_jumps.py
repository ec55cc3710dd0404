"""Jumps beside a smooth release: found in units of the noise, or harmless."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import exhume
from exhume.bounds.jumps import Ellipse, unexplained_changes
from exhume.bounds.regularity import information_maps
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.bound import NotApplicable


class Features(nn.Module):
    """A network whose gradient of the squared error at target -½ is φ(x), exactly."""

    def __init__(self, features, size):
        super().__init__()
        self.features = features
        self.last = nn.Linear(size, 1, bias=False).double()
        self.last.weight.data.zero_()

    def forward(self, x):
        return self.last(self.features(x))


def standard_normal(dimension):
    mean = torch.zeros(dimension, dtype=torch.float64)
    return GaussianDensity.from_covariance(mean, torch.eye(dimension).double())


def release_of(features, dimension, std=1.0, size=None):
    """A world that releases φ(x) + noise for x ~ N(0, I)."""
    task = exhume.Task(Features(features, size or dimension), loss="mse")
    spec = exhume.EventSpec.vector(dimension)
    inputs = torch.zeros(1, dimension, dtype=torch.float64)
    target = torch.full((1, 1), -0.5, dtype=torch.float64)
    noise = exhume.defense("gaussian-noise", std=std)
    mechanism = exhume.Mechanism(Gradient(), [noise])
    batch = exhume.Batch(inputs, target, spec)
    return exhume.World(task, batch, mechanism, prior=standard_normal(dimension))


def least_error(function):
    """E Var(x | g(x) + n) for standard normal x and n, by quadrature."""
    x = np.linspace(-8, 8, 4001)
    weight = np.exp(-(x**2) / 2)
    weight /= weight.sum()
    g = function(torch.from_numpy(x)).numpy()
    explained, step = 0.0, 1 / 8
    for y in np.array_split(np.arange(g.min() - 7, g.max() + 7, step), 200):
        joint = np.exp(-((y[:, None] - g) ** 2) / 2) * weight
        total = joint.sum(axis=1)
        explained += float(((joint @ x) ** 2 / np.maximum(total, 1e-300)).sum())
    return 1 - explained * step / math.sqrt(2 * math.pi)


def evaluated(world, key=0):
    return exhume.bound("bayesian-cramer-rao", draws=8)(world, key=key)


def test_the_quadrature_knows_closed_forms():
    assert least_error(lambda x: 2 * x) == pytest.approx(1 / 5, rel=1e-6)
    assert least_error(lambda x: 0 * x) == pytest.approx(1, rel=1e-6)
    # The sign of x and nothing else: 1 - (E|x|)².
    sign = least_error(lambda x: 60 * (x > 0).double())
    assert sign == pytest.approx(1 - 2 / math.pi, rel=1e-3)


@pytest.mark.parametrize("slope", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("size", [1.0, 10.0])
def test_a_strong_smooth_direction_does_not_hide_a_jump(slope, size):
    def features(x):
        jump = size * (x[..., 1] > 0).to(x)
        return torch.stack([slope * x[..., 0], jump], dim=-1)

    found = evaluated(release_of(features, 2))
    assert isinstance(found, NotApplicable)
    assert "jumps as the data move" in found.reason
    # Without the refusal, x₂ would have a bound of 1.
    assert least_error(lambda x: size * (x > 0).double()) < 0.9


def planted(key):
    """A random smooth release with a jump in one direction of many.

    Returns:
        The world, and a lower bound on the least error of its release.
    """
    source = generator(key, "planted")

    def uniform(low, high):
        return low + (high - low) * float(torch.rand((), generator=source))

    dimension = 2 + key % 4
    normal = torch.randn(dimension, dimension, generator=source, dtype=torch.float64)
    turn = torch.linalg.qr(normal).Q
    strong, size, width = 10 ** uniform(-1, 4), 10 ** uniform(-3, 1), uniform(0.1, 2)
    slope, place = 10 ** uniform(-1, 1) * (key % 3 > 0), uniform(-2, 2)

    def jump(z):
        match key % 5:
            case 0:
                return (z > place).to(z)
            case 1:
                return ((z > place) & (z < place + width)).to(z)
            case 2:
                return (z / width).floor() * width
            case 3:
                return (20 * z / width).floor() * width / 20
            case _:
                return z / width - (z / width).floor()

    def one(z):
        return slope * z + size * jump(z)

    def features(x):
        z = x @ turn
        rest = 0.1 * z[..., 2:].sin()
        parts = [strong * z[..., :1], one(z[..., 1:2]), rest]
        return torch.cat(parts, dim=-1)

    # E cos² = (1 + e⁻²) / 2 for the smooth rest, coordinate by coordinate.
    rest = (dimension - 2) / (1 + 0.01 * (1 + math.exp(-2)) / 2)
    return release_of(features, dimension), 1 / (1 + strong**2) + rest, one


def test_planted_jumps_are_refused_or_their_bounds_hold():
    bounded = 0
    for key in range(40):
        world, others, one = planted(key)
        found = evaluated(world, key)
        if isinstance(found, NotApplicable):
            assert "jumps" in found.reason
            continue
        bounded += 1
        least = others + least_error(one)
        assert found.total - 4 * found.standard_error < 1.01 * least, key
    # Jumps far below the noise are no reason to refuse.
    assert bounded >= 3


# --- no false refusals ---------------------------------------------------------------


def network(activation, gain, depth, key, width=16):
    source = generator(key, "network")
    layers, size = [], 5
    for _ in range(depth):
        layers += [nn.Linear(size, width), activation()]
        size = width
    net = nn.Sequential(*layers, nn.Linear(size, 4)).double()
    for p in net.parameters():
        values = torch.randn(p.shape, generator=source, dtype=torch.float64)
        p.data.copy_(gain * values / p.shape[-1] ** 0.5)
    return net


def regular(net, std, *defenses, batch_size=1):
    """Whether the release of a network has Fisher information."""
    prior = standard_normal(5)
    inputs = prior.sample(2 * batch_size, key=1)
    batches = list(inputs.split(batch_size))
    batch = exhume.Batch(
        batches[0], torch.arange(batch_size), exhume.EventSpec.vector(5)
    )
    stack = [*defenses, exhume.defense("gaussian-noise", std=std)]
    mechanism = exhume.Mechanism(Gradient(), stack)
    world = exhume.World(exhume.Task(net), batch, mechanism, prior=prior)
    found = information_maps(world, batches, 0, prior)
    assert isinstance(found, list) or "jumps" in found.reason
    return isinstance(found, list)


SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)


@pytest.mark.parametrize("std", [1e-6, 1e-2])
@pytest.mark.parametrize("gain", [1, 8])
def test_smooth_networks_are_not_refused_however_weak_the_noise(std, gain):
    for activation in SMOOTH:
        net = network(activation, gain, depth=2, key=gain)
        assert regular(net, std, batch_size=2), activation
    # A derivative of higher order with a kink is smooth enough; one with jumps is not.
    for activation in (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.SELU):
        assert not regular(network(activation, gain, depth=2, key=gain), std)


@pytest.mark.parametrize("std", [1e-5, 1e-2])
def test_clipping_is_not_mistaken_for_a_jump(std):
    net = network(nn.Tanh, 2, depth=1, key=0)
    sizes = {"max_norm": 0.3, "batch_size": 2}
    for defense in (
        exhume.defense("clipping", max_norm=0.3),
        exhume.defense("coordinate-clipping", max_abs=0.01),
        exhume.defense("example-clipping", **sizes),
    ):
        assert regular(net, std, defense, batch_size=2), defense
        assert not regular(network(nn.ReLU, 2, 1, 0), std, defense, batch_size=2)


def test_noise_that_drowns_every_jump_is_no_reason_to_refuse():
    net = network(nn.ReLU, 1, depth=1, key=0)
    assert not regular(net, 1.0)
    assert regular(net, 1e4)


# --- the measurement -----------------------------------------------------------------


def turn(dimension=1):
    first, second = torch.eye(2, dtype=torch.float64)[:, :dimension].unsqueeze(1)
    return Ellipse(torch.zeros(1, dimension).double(), first, second)


def measured(function, tolerance=0.05, shown=lambda tree: tree):
    """What is missed of a function of cos θ on one turn."""
    path = turn()
    return unexplained_changes(lambda x: {"o": function(x)}, shown, [path], tolerance)[
        0
    ]


def test_a_step_is_missed_whole_and_a_smooth_function_not_at_all():
    smooth = measured(lambda x: (3 * x).sin(), tolerance=1e-6)
    assert smooth.missed < 1e-6
    assert not smooth.jumps
    # cos θ passes 0.3 twice; the smooth part is no part of what is missed.
    step = measured(lambda x: 1e3 * x.sin() + 0.7 * (x > 0.3).to(x))
    assert step.missed == pytest.approx(1.4, rel=0.1)
    assert step.jumps
    # A hundred small steps on the way from -1 to 1, and as many back.
    stairs = measured(lambda x: (50 * x).floor() / 50)
    assert stairs.missed == pytest.approx(4, rel=0.1)
    assert stairs.jumps


def test_a_kink_is_resolved_and_many_kinks_are_known_by_their_order():
    one = measured(lambda x: 1e4 * (x - 0.3).abs())
    assert one.missed <= 0.05
    assert not one.jumps
    places = torch.linspace(-1, 1, 400).double()
    many = measured(lambda x: 1e3 * (x - places).abs())
    assert many.missed > 0.05
    assert not many.jumps


def test_what_comes_after_the_release_counts():
    def step(x):
        return 1e3 * (x > 0.3).to(x)

    def clipped(tree):
        return {"o": tree["o"].clamp(-1e-3, 1e-3)}

    assert measured(step).jumps
    small = measured(step, shown=clipped)
    assert small.missed == pytest.approx(0.002)
    assert not small.jumps


def test_every_path_is_measured():
    there, elsewhere = turn(), turn()._replace(centre=torch.full((1, 1), 9.0).double())

    def exact(x):
        return {"o": (x > 0.3).to(x)}

    found = unexplained_changes(exact, lambda t: t, [elsewhere, there], 0.05)
    assert [one.jumps for one in found] == [False, True]
    assert found[0].missed == 0.0
