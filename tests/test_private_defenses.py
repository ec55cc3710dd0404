"""Defenses that need a client's own examples or randomness keep their word too.

Rows are those of test_defenses.py with ``private=True``; a release is made by a
mechanism from a batch, as a client makes it.
"""

import pickle

import pytest
import torch
from torch import nn

import exhume
from exhume import Mechanism, NotApplicable, Task, ThreatModel, World, registry
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.errors import ExhumeError
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Defense
from exhume.problem.observation import Candidate
from exhume.problem.privacy import Guarantee
from exhume.problem.reconstruction import Outcome
from exhume.problem.tree import flatten
from test_attacks import OF_A_HEAD, OF_WEIGHTS, QUICK
from test_defenses import BATCH, REGISTERED, ROWS, TASK, cases, make, same
from toys import GRAY, make_world, mlp, reveal, transfer

every_private = cases(lambda row: row.private)

#: options that every defense of the registry takes on a batch of two examples
PROTOCOL = ["local-aggregation", "secure-aggregation", "soteria", "precode", "censor"]
#: attacks that a gradient can be given to
ON_GRADIENTS = [
    attack
    for attack in sorted(set(QUICK) - OF_WEIGHTS)
    if "gradient" in registry.find("attack", attack).inverts
]
WHOLE = Candidate(BATCH.inputs, BATCH.targets)


def relu_task(*, batch_norm: bool = False) -> Task:
    middle = [nn.BatchNorm1d(6)] if batch_norm else []
    net = nn.Sequential(
        nn.Linear(4, 6), *middle, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    values = torch.Generator().manual_seed(8)
    for parameter in net.parameters():
        parameter.data.normal_(generator=values)
    return Task(net.double())


@every_private
def test_identity_where_there_is_one(name, row):
    if row.identity is None:
        return
    mechanism = Mechanism(Gradient(), [make(name, row.identity)])
    observation = mechanism.sample(TASK, BATCH, key=1)
    assert same(observation.values, TASK.gradient(BATCH.inputs, BATCH.targets))
    law = mechanism.law(observation.plans, observation.values)
    assert (law.maps, dict(law.mask), law.irregular, law.not_gaussian) == (
        (),
        {},
        None,
        None,
    )
    assert mechanism.defenses[0].preserves_zeros


@every_private
@pytest.mark.parametrize("task", [TASK, relu_task()], ids=["tanh", "relu"])
def test_release_is_reproducible_finite_and_of_the_induced_layout(name, row, task):
    mechanism = Mechanism(Gradient(), [make(name, row.acts)])
    first, again, other = (mechanism.sample(task, BATCH, key) for key in (3, 3, 4))
    assert same(first.values, again.values)
    induced = mechanism.induced(task, first.plans, first.values)
    shapes = {n: p.shape for n, p in induced.task.parameters().items()}
    assert {n: t.shape for n, t in first.values.items()} == shapes
    assert bool(flatten(first.values).isfinite().all())
    assert not same(first.values, task.gradient(BATCH.inputs, BATCH.targets))
    if name != "soteria":
        assert not same(first.values, other.values)


@every_private
def test_the_public_plan_says_nothing_of_the_private_examples(name, row):
    mechanism = Mechanism(Gradient(), [make(name, row.acts)])
    moved = exhume.Batch(BATCH.inputs.flip(1), BATCH.targets, BATCH.spec)
    plans = [mechanism.sample(TASK, b, key=3).plans[0] for b in (BATCH, moved)]
    assert same(dict(plans[0].arrays), dict(plans[1].arrays))
    assert plans[0].numbers == plans[1].numbers


@every_private
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buffers_and_counters_pass_untouched(name, row, dtype):
    task = relu_task(batch_norm=True).to(dtype)
    buffers = {n: b.clone() for n, b in task.model.named_buffers()}
    defense = make(name, row.acts)
    public = defense.calibrate(task, None, 0)
    after = defense.transform_task(task, public)
    whole = Candidate(BATCH.inputs.to(dtype), BATCH.targets)
    own = defense.personalise(task, Gradient(), whole, public, 5).beside(buffers)
    update = {**after.gradient(whole.inputs, whole.targets), **buffers}
    released = defense.apply(update, own, 1)
    assert "1.num_batches_tracked" in own.in_clear
    assert all(torch.equal(released[n], buffers[n]) for n in buffers)
    assert all(released[n].dtype == update[n].dtype for n in update)
    assert list(update) == [*after.parameters(), *buffers]
    assert after.running_statistics.keys() == task.running_statistics.keys()


@every_private
def test_pickles(name, row):
    mechanism = Mechanism(Gradient(), [make(name, row.acts)])
    observation = mechanism.sample(TASK, BATCH, key=2)
    induced = mechanism.induced(TASK, observation.plans, observation.values)
    law, model, plans = pickle.loads(
        pickle.dumps((induced.law, induced.model, observation.plans))
    )
    exact = induced.model.forward(induced.task, WHOLE)
    assert same(law.mean(exact), induced.law.mean(exact))
    assert same(model.forward(induced.task, WHOLE), exact)
    again = mechanism.sample(TASK, BATCH, key=2, plans=plans)
    assert same(again.values, observation.values)


@every_private
def test_global_randomness_is_untouched(name, row):
    before = torch.get_rng_state()
    world = World(TASK, BATCH, Mechanism(Gradient(), [make(name, row.acts)]))
    ThreatModel("labels-known").reveal(world, world.observe(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", PROTOCOL)
def test_bounds_refuse_or_are_finite(name):
    defense = make(name, ROWS[name][0].acts)
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
    defenses = (make(name, ROWS[name][0].acts),)
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
    defense = make(name, ROWS[name][0].acts)
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


def test_this_file_covers_the_registry():
    private = {n for n in REGISTERED for row in ROWS.get(n, []) if row.private}
    overrides = {
        n
        for n in REGISTERED
        if registry.find("defense", n).personalise is not Defense.personalise
    }
    assert private <= set(PROTOCOL)
    assert private <= overrides
