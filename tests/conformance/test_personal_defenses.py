"""Conformance of defenses whose plan the client completes from its private batch.

A release is made by a mechanism from a batch, as a client makes it.
"""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import exhume
from exhume import Mechanism, Task, ThreatModel, World
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.tree import flatten

from .rows import every
from .tiny import BATCH, TASK, WHOLE, personal, same

every_private = every("defense", personal)


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
def test_identity_where_there_is_one(defense):
    if defense.idle() is None:
        return
    mechanism = Mechanism(Gradient(), [defense.idle()])
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
def test_release_is_reproducible_finite_and_of_the_induced_layout(defense, task):
    mechanism = Mechanism(Gradient(), [defense])
    first, again = (mechanism.sample(task, BATCH, 3) for _ in range(2))
    assert same(first.values, again.values)
    induced = mechanism.induced(task, first.plans, first.values)
    shapes = {n: p.shape for n, p in induced.task.parameters().items()}
    assert {n: t.shape for n, t in first.values.items()} == shapes
    assert bool(flatten(first.values).isfinite().all())
    assert not same(first.values, task.gradient(BATCH.inputs, BATCH.targets))


@every_private
def test_the_public_plan_says_nothing_of_the_private_examples(defense):
    mechanism = Mechanism(Gradient(), [defense])
    moved = exhume.Batch(BATCH.inputs.flip(1), BATCH.targets, BATCH.spec)
    plans = [mechanism.sample(TASK, b, key=3).plans[0] for b in (BATCH, moved)]
    assert same(dict(plans[0].arrays), dict(plans[1].arrays))
    assert plans[0].numbers == plans[1].numbers


@every_private
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buffers_and_counters_pass_untouched(defense, dtype):
    task = relu_task(batch_norm=True).to(dtype)
    buffers = {n: b.clone() for n, b in task.model.named_buffers()}
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
def test_pickles(defense):
    mechanism = Mechanism(Gradient(), [defense])
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
def test_global_randomness_is_untouched(defense):
    before = torch.get_rng_state()
    world = World(TASK, BATCH, Mechanism(Gradient(), [defense]))
    ThreatModel("labels-known").reveal(world, world.observe(0))
    assert torch.equal(torch.get_rng_state(), before)
