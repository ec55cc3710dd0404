"""Plans are calibrated once for everything that needs them, and are the same plans."""

from dataclasses import replace

import pytest
import torch

from exhume.audit.settings import AuditSettings
from exhume.audit.sweep import expand
from exhume.bounds.regularity import information_maps
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.optimal_gradient_noise import OptimalGradientNoise
from exhume.defenses.pruning import Pruning
from exhume.problem.bound import NotApplicable
from exhume.problem.defense import Plan
from exhume.problem.mechanism import Mechanism
from exhume.trials import trial
from exhume.trials.calibrated import PlanMemory
from toys import GRAY, make_world


@pytest.fixture
def calibrations(monkeypatch):
    """Count how often a mechanism is calibrated."""
    counted = []
    calibrate = Mechanism.calibrate

    def counting(self, task, public, key):
        counted.append(key)
        return calibrate(self, task, public, key)

    monkeypatch.setattr(Mechanism, "calibrate", counting)
    return counted


def audit(defense, **given):
    settings = AuditSettings(
        data="digits",
        model={"name": "mlp", "hidden": [8], "activation": "tanh"},
        defenses=[defense],
        attacks=["analytic-linear"],
        bounds=["bayesian-cramer-rao"],
        seeds=1,
        **given,
    )
    return expand(settings)


def plan_of(bytes_held):
    array = torch.zeros(bytes_held, dtype=torch.uint8)
    return {1: (Plan("x", {}, (), arrays={"a": array}),)}


def test_a_world_calibrates_once_per_key(calibrations):
    world = make_world(GRAY, defenses=[GaussianNoise(std=0.1)])
    first, again = world.observe(3), world.observe(3)
    points = [world.batch.inputs.double(), 0.9 * world.batch.inputs.double()]
    assert not isinstance(information_maps(world, points, 3), NotApplicable)
    assert calibrations == [3]
    assert first.plans is again.plans
    world.observe(4)
    assert calibrations == [3, 4]


def test_another_mechanism_has_its_own_plans():
    world = make_world(GRAY, defenses=[GaussianNoise(std=0.1)])
    world.observe(3)
    other = replace(world, mechanism=Mechanism(world.mechanism.observation, ()))
    assert other.plans(3) == ()


def test_values_are_those_of_the_whole_observation():
    world = make_world(GRAY, defenses=[Pruning(ratio=0.5), GaussianNoise(std=0.1)])
    found = world.observe(3)
    values = world.mechanism.values(world.task, world.batch, 3, found.plans)
    assert values.keys() == found.values.keys()
    assert all(torch.equal(values[n], t) for n, t in found.values.items())


def test_trials_of_one_setting_share_plans_and_give_the_same_bits(
    monkeypatch, calibrations
):
    specs = audit({"name": "optimal-gradient-noise", "std": 0.1, "samples": 2})
    monkeypatch.setattr(trial, "_PLANS", PlanMemory())
    shared = [trial.run_trial(spec) for spec in specs]
    assert len(calibrations) == 1
    for spec, result in zip(specs, shared, strict=True):
        monkeypatch.setattr(trial, "_PLANS", PlanMemory(limit=0))
        alone = trial.run_trial(spec)
        assert alone.status == result.status == "done"
        assert alone.scores == result.scores
        assert alone.bound == result.bound
    assert len(calibrations) == 1 + len(specs)


def test_other_options_and_seeds_have_plans_of_their_own(monkeypatch, calibrations):
    monkeypatch.setattr(trial, "_PLANS", PlanMemory())
    (first, *_) = audit({"name": "gaussian-noise", "std": 0.1})
    (second, *_) = audit({"name": "gaussian-noise", "std": 0.2})
    for spec in (first, second, replace(first, seed=1)):
        trial.run_trial(spec)
    assert len(calibrations) == 3


def test_the_plans_longest_unused_give_way():
    memory = PlanMemory(limit=100)
    for name in ("a", "b"):
        memory.keep(name, plan_of(40))
    memory.keep("a", memory.of("a"))
    memory.keep("c", plan_of(40))
    assert memory.of("a")
    assert memory.of("c")
    assert memory.of("b") == {}
    memory.keep("d", plan_of(101))
    assert memory.of("d") == {}


def test_a_bound_calibrates_as_the_attacks_saw_it():
    world = make_world(GRAY, defenses=[OptimalGradientNoise(std=0.1, samples=2)])
    seen = world.observe(5).plans
    fresh = world.mechanism.calibrate(world.task, world.public, 5)
    for a, b in zip(seen, fresh, strict=True):
        assert all(torch.equal(a.arrays[n], b.arrays[n]) for n in b.arrays)
