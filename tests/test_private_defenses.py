"""Defenses that need a client's own examples or randomness: bounds and attacks."""

import pytest

import exhume
from conformance.tiny import BATCH, TASK, personal, same
from exhume import Mechanism, NotApplicable, World, registry
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Defense
from exhume.problem.privacy import Guarantee
from toys import GRAY, make_world

#: options that every defense of the registry takes on a batch of two examples
PROTOCOL = ["local-aggregation", "secure-aggregation", "soteria", "precode", "censor"]


def example(name: str) -> Defense:
    return registry.find("defense", name).examples()[0]


@pytest.mark.parametrize(
    ("name", "fresh"), [("soteria", False), ("precode", True), ("censor", True)]
)
def test_a_choice_is_private_and_a_draw_is_fresh(name, fresh):
    defense = example(name)
    assert personal(defense)
    mechanism = Mechanism(Gradient(), [defense])
    first, other = (mechanism.sample(TASK, BATCH, key) for key in (3, 4))
    assert same(first.values, other.values) is not fresh


@pytest.mark.parametrize("name", PROTOCOL)
def test_bounds_refuse_or_are_finite(name):
    defense = example(name)
    world = make_world(GRAY, labels=(1, 3), defenses=(defense,))
    prior = exhume.prior("gaussian").fit(world.public, world.task)
    noisy = {"soteria", "precode", "censor"}
    for bound in ("bayesian-cramer-rao", "fisher-information-leakage"):
        value = exhume.bound(bound)(world, prior, 0)
        assert isinstance(value, NotApplicable)
        assert len(value.reason) > 30
        if name in noisy:
            behind = Mechanism(Gradient(), _behind(defense))
            again = exhume.bound(bound)(
                World(world.task, world.batch, behind, world.public), prior, 0
            )
            assert isinstance(again, NotApplicable)
            assert (
                name in again.reason
                or "latent noise" in again.reason
                or ("orthogonal" in again.reason)
            )


def _behind(defense):
    return (defense, GaussianNoise(std=1.0))


@pytest.mark.parametrize("name", ["soteria", "censor"])
def test_a_choice_from_private_examples_after_the_noise_voids_the_guarantee(name):
    defense = example(name)
    plan = defense.calibrate(TASK, None, 0)
    bounded = Guarantee(plan.shapes).clipped(plan.shapes, 1.0, "client")
    noisy = bounded.plus_noise(dict.fromkeys(plan.shapes, 1.0))
    assert noisy.multiplier == 1.0
    after = defense.account(noisy, plan)
    assert after.multiplier == 0.0
    assert "private examples" in after.reasons[0]
    before = defense.account(bounded, plan).plus_noise(dict.fromkeys(plan.shapes, 1.0))
    assert before.multiplier == 1.0
    each = Guarantee(plan.shapes).clipped(plan.shapes, 1.0, "example")
    assert defense.account(each, plan).broken
