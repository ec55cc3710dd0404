"""Defenses that need a client's own examples or randomness: bounds and attacks."""

import pytest

import exhume
from conformance.tiny import BATCH, TASK, personal, same
from exhume import Mechanism, NotApplicable, World, registry
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.errors import ExhumeError
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Defense
from exhume.problem.privacy import Guarantee
from exhume.problem.reconstruction import Outcome
from test_attacks import OF_A_HEAD, OF_WEIGHTS, QUICK
from toys import GRAY, make_world, mlp, reveal, transfer

#: options that every defense of the registry takes on a batch of two examples
PROTOCOL = ["local-aggregation", "secure-aggregation", "soteria", "precode", "censor"]
#: attacks that a gradient can be given to
ON_GRADIENTS = [
    attack
    for attack in sorted(set(QUICK) - OF_WEIGHTS)
    if "gradient" in registry.find("attack", attack).inverts
]


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


@pytest.mark.parametrize("name", PROTOCOL)
@pytest.mark.parametrize("attack", ON_GRADIENTS)
def test_no_attack_breaks_down(name, attack):
    defenses = (example(name),)
    model = transfer(GRAY) if attack in OF_A_HEAD else mlp(GRAY)
    world = make_world(GRAY, labels=(3, 1), model=model, defenses=defenses)
    for threat in ("labels-known", "parameter-aware", "defense-unknown"):
        problem = reveal(world, threat)
        try:
            guess = exhume.attack(attack, **QUICK[attack])(problem, key=0)
        except ExhumeError:  # a sentence of ours, as an audit prints it
            assert threat != "labels-known"
            continue
        assert isinstance(guess.outcome, Outcome)
        assert guess.inputs.shape == world.batch.inputs.shape
        assert bool(guess.inputs.isfinite().all())


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
