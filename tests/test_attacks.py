"""Attacks: what they declare, and the chance levels."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

import conformance.attacks
import exhume
from conformance.attacks import NAMES, brief
from exhume.attacks.prior_mean import PriorMean
from exhume.errors import MissingKnowledge
from exhume.keys import generator
from exhume.problem.knowledge import UNKNOWN, Fact
from exhume.problem.reconstruction import Outcome, Stopwatch
from toys import (
    GRAY,
    make_world,
    mlp,
    reveal,
    seeded,
    smooth,
    smooth_mlp,
)


@lru_cache
def world(labels: tuple[int, ...] = (3,)):
    return make_world(GRAY, labels=labels, model=smooth_mlp(GRAY), key=1)


@lru_cache
def problem(labels: tuple[int, ...] = (3,)):
    return reveal(world(labels))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_method_can_be_called(name):
    """A method that no one ever calls is a method that does not work (S29)."""
    attack, p = brief(name), conformance.attacks.problem(name)
    start = smooth(GRAY, 1, 7)
    calls = {
        "examples": lambda: attack.examples(),
        "run": lambda: attack.run(p, 0),
        "objective": lambda: attack.objective(p, start, torch.tensor([3])),
        "run_from": lambda: attack.run_from(p, 0, start),
        "design": lambda: attack.design(p),
        "setting": lambda: attack.setting(p),
        "begin": lambda: attack.begin(p, attack.setting(p), generator(0)),
        "steps": lambda: attack.steps(Stopwatch(), 0),
    }
    methods = {
        n
        for n, _ in inspect.getmembers(type(attack), callable)
        if not n.startswith("_")
    }
    assert methods <= set(calls), "say here how to call the new public method"
    for method in sorted(methods):
        result = calls[method]()
        assert method == "objective" or result is not None


def test_one_attack_alone_is_not_for_the_small_worlds():
    """It reads a variance that depends on the data, and has worlds of its own."""
    ended = {name: conformance.attacks.answer(name).outcome for name in NAMES}
    without = {n for n, outcome in ended.items() if outcome is Outcome.NOT_APPLICABLE}
    assert without == {"covariance-aware"}


# --- the chance levels ---------------------------------------------------------------


def test_prior_mean_ignores_the_observation():
    p = problem()
    other = replace(p, observed={n: -t for n, t in p.observed.items()})
    first, second = PriorMean()(p), PriorMean()(other, key=3)
    assert torch.equal(first.inputs, second.inputs)
    assert first.inputs.unique().tolist() == [0.5]


def test_prior_mean_answers_the_mean_of_a_fitted_prior():
    w = world()
    assert w.public is not None
    density = exhume.prior("gaussian").fit(w.public, w.task)
    p = replace(problem((1, 2)), prior=density)
    guess = PriorMean()(p)
    for x in guess.inputs:
        torch.testing.assert_close(x, GRAY.clamp(density.mean().to(x)))


def test_prior_mean_guesses_the_commonest_public_label():
    w = make_world(GRAY, labels=(2, 2))
    assert w.public is not None
    gallery = replace(w.public, targets=torch.tensor([4] * 11 + [1] * 9))
    p = reveal(replace(w, public=gallery), "data-enhanced")
    assert PriorMean()(p).targets.tolist() == [4, 4]
    assert PriorMean()(replace(p, public=UNKNOWN)).targets.tolist() == [0, 0]


@pytest.mark.parametrize("threat", ["labels-known", "data-enhanced"])
def test_nearest_public_finds_near_copies(threat):
    """A gallery with a slightly changed copy of each private example gives it."""
    w = make_world(GRAY, labels=(0, 3, 3), model=mlp(GRAY))
    assert w.public is not None
    copies = (w.batch.inputs + 0.01).clamp(0, 1)
    gallery = replace(
        w.public,
        inputs=torch.cat([w.public.inputs, copies]),
        targets=torch.cat([w.public.targets, w.batch.targets]),
    )
    p = reveal(replace(w, public=gallery), threat)
    guess = exhume.attack("nearest-public")(p)
    gap = (guess.inputs[:, None] - copies[None]).abs().flatten(2).amax(2)
    assert sorted(gap.argmin(1).tolist()) == [0, 1, 2]
    assert float(gap.amin(1).max()) == 0
    assert guess.targets.sort().values.tolist() == [0, 3, 3]
    assert guess.cost.evaluations <= 200


def test_nearest_public_keeps_to_its_budget_and_repeats_if_it_must():
    w = make_world(GRAY, labels=(0, 1, 2, 3), public=2)
    guess = exhume.attack("nearest-public", gradients=6)(reveal(w))
    assert guess.cost.evaluations <= 8
    assert guess.inputs.shape == (4, 1, 8, 8)
    assert guess.targets.sort().values.tolist() == [0, 1, 2, 3]


def test_nearest_public_takes_batch_norm_in_train_mode():

    layers = [nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)]
    model = seeded(nn.Sequential(nn.Flatten(), *layers), 0)
    w = make_world(GRAY, labels=(0, 3), model=model, mode="train")
    guess = exhume.attack("nearest-public", gradients=10)(reveal(w))
    assert guess.inputs.shape == (2, 1, 8, 8)


def test_an_undeclared_fact_is_unknown_inside_an_attack():
    from exhume.problem.attack import Attack

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Greedy(Attack):
        """Reads more than it declares."""

        needs = frozenset({Fact.BATCH_SIZE})

        def run(self, problem, key):
            assert problem.task is UNKNOWN
            assert problem.targets is UNKNOWN
            assert problem.batch_size == 1
            return problem.require(Fact.LABELS)

    with pytest.raises(MissingKnowledge, match="the labels of the batch"):
        Greedy()(problem())
