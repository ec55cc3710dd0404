"""Conformance of bounds: a number or a reason, order in the noise, nothing private."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import cache

import torch

import exhume
from exhume import ThreatModel, World, registry
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.keys import fold
from exhume.problem.bound import Binds, BoundValue, NotApplicable, RiskValue

from .rows import every
from .worlds import defended_world, network_world, normal, observations, random_world

every_bound = every("bound")


@every_bound
def test_value_is_finite_positive_plain_data(bound):
    found = bound(defended_world(0.05))
    assert isinstance(found, BoundValue | RiskValue), found
    assert found.name == registry.registered_name(type(bound))
    assert found.standard_error >= 0
    assert found.binds in Binds
    assert found.reference
    assert all(math.isfinite(number) for number in found.details.values())
    assert all(sentence.endswith(".") for sentence in found.assumptions)
    assert len(found.assumptions) > 0
    plain = {**asdict(found), "per_coordinate": None}
    json.dumps(plain, allow_nan=False)
    if isinstance(found, RiskValue):
        assert 0 < found.value < 1
        assert found.quantity
        return
    assert found.total > 0
    assert (found.unknowns, found.batch_size) == (6, 1)
    assert found.mse == found.total / 6
    assert found.mse_standard_error == found.standard_error / 6


@every_bound
def test_deterministic_without_touching_global_randomness(bound):
    world = defended_world(0.05)
    before = torch.random.get_rng_state()
    first, second = (bound(world, key=3) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.random.get_rng_state())


@every_bound
def test_private_inputs_are_not_used(bound):
    one = bound(defended_world(0.05))
    swapped = defended_world(0.05, inputs=normal(1, 6, key=77).float())
    assert bound(swapped) == one


@every_bound
def test_less_is_possible_with_more_noise(bound):
    stds = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
    found = [bound(defended_world(std)) for std in stds]
    assert len({type(one) for one in found}) == 1
    levels = [-b.value if isinstance(b, RiskValue) else b.total for b in found]
    assert levels == sorted(levels)
    assert levels[0] < levels[-1]


@every_bound
def test_no_noise_is_refused(bound):
    found = bound(network_world(Clipping(max_norm=0.1)))
    assert isinstance(found, NotApplicable), found
    assert "no noise" in found.reason


@cache
def attacked() -> list[tuple[int, World, list[float]]]:
    """Attack random problems; the key and world of each, and the errors of attacks."""
    found = []
    for network in range(4):
        key = fold(0, "bounds", network)
        one = random_world(lambda std, _: (GaussianNoise(std=std),), 1, key)
        errors = []
        for draw, (world, observation) in enumerate(observations(one, key, 4)):
            problem = ThreatModel("labels-known").reveal(world, observation)
            for name in ("gauss-newton", "analytic-linear", "prior-mean"):
                guess = exhume.attack(name)(problem, draw)
                errors.append(
                    float((guess.inputs - world.batch.inputs).square().mean())
                )
        found.append((key, one, errors))
    return found


@every_bound
def test_no_attack_is_below_it_on_average(bound):
    """What binds every attack binds ours, on data that are drawn from the prior."""
    ratios = torch.tensor([], dtype=torch.float64)
    for key, world, errors in attacked():
        found = bound(world, key=key)
        if not isinstance(found, BoundValue) or found.binds is not Binds.EVERY_ATTACK:
            return
        ratios = torch.cat([ratios, torch.tensor(errors).reshape(-1, 3) / found.mse])
    spread = ratios.std(dim=0) / len(ratios) ** 0.5
    assert bool((ratios.mean(dim=0) >= 1 - 3 * spread).all())
