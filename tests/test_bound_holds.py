"""No attack beats the bound: many random problems with data drawn from the prior."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from exhume.audit.facts import ordered_error
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.observation import Candidate, Observation

NETWORKS, DRAWS, CLASSES = 6, 7, 5
ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.Softplus)
STACKS = {
    "noise": lambda noise: (noise,),
    "laplace": lambda noise: (exhume.defense("laplace-noise", std=noise.std),),
    "clipping": lambda noise: (exhume.defense("clipping", max_norm=0.3), noise),
    "pruned noise": lambda noise: (
        noise,
        exhume.defense("pruning", ratio=0.3, kind="random"),
    ),
    "all": lambda noise: (
        exhume.defense("pruning", ratio=0.3, kind="random"),
        exhume.defense("clipping", max_norm=0.3),
        noise,
    ),
}
ATTACKS = {
    "gauss-newton": {"restarts": 1},
    "analytic-linear": {},
    "prior-mean": {},
}


def random_world(stack, size, key):
    """A random smooth network, prior, labels and noise level; the inputs are drawn."""
    local = generator(key, "world")

    def normal(*shape):
        return torch.randn(shape, generator=local, dtype=torch.float64)

    def choice(low, high):
        return int(torch.randint(low, high, (), generator=local))

    dimension, width = choice(3, 6), choice(12, 20)
    net = nn.Sequential(
        nn.Linear(dimension, width),
        ACTIVATIONS[choice(0, len(ACTIVATIONS))](),
        nn.Linear(width, CLASSES),
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(normal(*p.shape) / p.shape[-1] ** 0.5)
    root = normal(dimension, dimension) / dimension**0.5
    covariance = root @ root.T + 0.1 * torch.eye(dimension).double()
    prior = GaussianDensity.from_covariance(normal(dimension), covariance / 4)
    std = 10 ** float(-3 + 2.5 * torch.rand((), generator=local))
    labels = torch.randperm(CLASSES, generator=local)[:size]
    spec = exhume.EventSpec.vector(dimension)
    batch = exhume.Batch(prior.sample(size, key), labels, spec)
    defenses = STACKS[stack](exhume.defense("gaussian-noise", std=std))
    mechanism = exhume.Mechanism(Gradient(), defenses)
    return exhume.World(exhume.Task(net), batch, mechanism, None, prior)


def observations(world, key):
    """Draw data from the prior and the noise again and again; the masks stay."""
    plans = world.mechanism.calibrate(world.task, None, key)
    for draw in range(DRAWS):
        inputs = world.prior.sample(len(world.batch), fold(key, "truth", draw))
        candidate = Candidate(inputs, world.batch.targets)
        exact = Gradient().forward(world.task, candidate)
        values = world.mechanism.release(exact, plans, fold(key, "release", draw))
        batch = replace(world.batch, inputs=inputs)
        yield replace(world, batch=batch), Observation(values, {}, plans, key)


@pytest.mark.parametrize(
    ("stack", "size"), [*((stack, 1) for stack in STACKS), ("noise", 2)]
)
def test_no_attack_is_below_the_bound_on_average(stack, size):
    ratios = {name: [] for name in ATTACKS}
    errors = []
    for network in range(NETWORKS):
        key = fold(0, stack, size, network)
        one = random_world(stack, size, key)
        bound = exhume.bound("bayesian-cramer-rao", draws=16)(one, key=key)
        if isinstance(bound, exhume.NotApplicable):
            # The kink of clipping; whether it is met does not depend on the truth.
            assert "jumps" in bound.reason
            continue
        errors.append(bound.standard_error / bound.total)
        for draw, (world, observation) in enumerate(observations(one, key)):
            problem = exhume.ThreatModel("labels-known").reveal(world, observation)
            batch = world.batch
            for name, options in ATTACKS.items():
                guess = exhume.attack(name, **options)(problem, draw)
                error = ordered_error(guess, batch.targets, batch.inputs)
                ratios[name].append(error / bound.mse)
    assert len(errors) >= NETWORKS - 2
    of_bound = torch.tensor(errors).square().sum().sqrt() / len(errors)
    for name, values in ratios.items():
        found = torch.tensor(values, dtype=torch.float64)
        spread = torch.hypot(found.std() / len(found) ** 0.5, of_bound)
        assert found.mean() >= 1 - 3 * spread, name
    # The test has teeth: the best attack typically comes near the bound.
    best = torch.tensor(ratios["gauss-newton"], dtype=torch.float64)
    assert best.median() < 1.5
