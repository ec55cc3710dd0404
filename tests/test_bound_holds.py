"""No attack beats the bound: many random problems with data drawn from the prior."""

from __future__ import annotations

import pytest
import torch

import exhume
from conformance.worlds import observations, random_world
from exhume.keys import fold
from exhume.problem.bound import BoundValue
from exhume.trials.trial import ordered_error

NETWORKS, DRAWS = 6, 5


def noise(std):
    return exhume.defense("gaussian-noise", std=std)


def masked(ratio=0.3):
    return exhume.defense("pruning", ratio=ratio, kind="random")


def clipping():
    return exhume.defense("clipping", max_norm=0.3)


def designed(std, **options):
    small = {"samples": 8, "directions": 4, "rank": 8}
    return exhume.defense("matrix-optimal-noise", std=std, **small, **options)


#: stack → the defenses for a noise level and batch size
STACKS = {
    "noise": lambda std, _: (noise(std),),
    "laplace": lambda std, _: (exhume.defense("laplace-noise", std=std),),
    "clipping": lambda std, _: (clipping(), noise(std)),
    "pruned noise": lambda std, _: (noise(std), masked()),
    "all": lambda std, _: (masked(), clipping(), noise(std)),
    "optimal": lambda std, size: (
        exhume.defense(
            "optimal-gradient-noise", std=std, probes=8, samples=16, batch_size=size
        ),
    ),
    "matrix bayesian": lambda std, _: (designed(std),),
    "matrix trace": lambda std, _: (
        designed(std, objective="trace", metric="curvature"),
    ),
    "matrix kronecker": lambda std, _: (designed(std, form="kronecker"),),
    "masked matrix": lambda std, _: (masked(), designed(std)),
    "dp-sgd": lambda std, size: (
        exhume.defense(
            "dp-sgd",
            max_norm=0.3,
            noise_multiplier=std * size / 0.3,
            batch_size=size,
        ),
    ),
    "dropout": lambda std, _: (exhume.defense("dropout", ratio=0.3), noise(std)),
    "local steps": lambda std, _: (
        exhume.defense("local-aggregation", steps=3, rate=0.3),
        noise(std),
    ),
    "secure sum": lambda std, size: (
        noise(std),
        exhume.defense("secure-aggregation", clients=size),
    ),
    "one dropped": lambda std, _: (
        noise(std),
        exhume.defense("secure-aggregation", clients=3, dropped=1),
    ),
}
ROWS = [*((stack, 1) for stack in STACKS if stack not in ("secure sum", "one dropped"))]
ROWS += [("noise", 2), ("dp-sgd", 2), ("secure sum", 2), ("one dropped", 3)]
ATTACKS = {
    "gauss-newton": {"restarts": 1},
    "analytic-linear": {},
    "prior-mean": {},
}


@pytest.mark.parametrize(("stack", "size"), ROWS)
def test_no_attack_is_below_the_bound_on_average(stack, size):
    ratios = {name: [] for name in ATTACKS}
    errors = []
    for network in range(NETWORKS):
        key = fold(0, stack, size, network)
        one = random_world(STACKS[stack], size, key)
        bound = exhume.bound("bayesian-cramer-rao", draws=12)(one, key=key)
        assert isinstance(bound, BoundValue), bound
        errors.append(bound.standard_error / bound.total)
        for draw, (world, observation) in enumerate(observations(one, key, DRAWS)):
            problem = exhume.ThreatModel("labels-known").reveal(world, observation)
            batch = world.batch
            for name, options in ATTACKS.items():
                guess = exhume.attack(name, **options)(problem, draw)
                error = ordered_error(guess, batch)
                ratios[name].append(error / bound.mse)
    of_bound = torch.tensor(errors).square().sum().sqrt() / len(errors)
    for name, values in ratios.items():
        found = torch.tensor(values, dtype=torch.float64)
        spread = torch.hypot(found.std() / len(found) ** 0.5, of_bound)
        assert found.mean() >= 1 - 3 * spread, name
    # The test has teeth: the best attack typically comes near the bound.
    best = torch.tensor(ratios["gauss-newton"], dtype=torch.float64)
    assert best.median() < 1.5
