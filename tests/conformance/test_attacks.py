"""Conformance of attacks: every registered one, on every kind of example.

Most tests take the first of its ``examples()``; the last is held against the chance
level on an easy problem.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import re
import socket
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import exhume
from exhume.attacks.engine.driver import MatchingAttack
from exhume.attacks.prior_mean import PriorMean
from exhume.errors import Inconsistent, MissingKnowledge
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.reconstruction import Outcome
from exhume.problem.threat import ThreatModel

from .attacks import NAMES, answer, brief, class_of, events_of, problem, thorough, world
from .toys import reveal, smooth

every_attack = pytest.mark.parametrize("name", NAMES)
every_pair = pytest.mark.parametrize(
    ("name", "event"),
    [
        pytest.param(n, e, id=f"{n}-{e.kind}-{'x'.join(map(str, e.shape))}")
        for n in NAMES
        for e in events_of(n)
    ],
)


def matrix_of(p: Problem) -> str:
    """Name an observed matrix that is not square."""
    return next(
        n for n, t in p.observed.items() if t.dim() == 2 and t.shape[0] != t.shape[1]
    )


def tensors(p: Problem) -> dict[str, torch.Tensor]:
    """Every tensor of a problem that an attack could write to."""
    found = {f"observed {n}": t for n, t in p.observed.items()}
    if p.task is not UNKNOWN:
        found |= {f"weights {n}": t for n, t in p.task.model.state_dict().items()}
    if p.public is not UNKNOWN:
        found |= {"public inputs": p.public.inputs, "public y": p.public.targets}
    if p.targets is not UNKNOWN:
        found["labels"] = p.targets
    return found


@every_pair
@pytest.mark.parametrize("labels", [(3,), (3, 0)], ids=["one", "two"])
def test_the_answer_is_well_formed(name, event, labels):
    guess = answer(name, event, "labels-known", labels)
    assert guess.inputs.shape == (len(labels), *event.shape)
    assert guess.inputs.dtype == torch.float32
    assert bool(torch.isfinite(guess.inputs).all())
    assert bool((guess.inputs == event.clamp(guess.inputs)).all())
    assert not guess.inputs.requires_grad
    assert guess.targets.dtype == torch.int64
    assert guess.targets.sort().values.tolist() == sorted(labels)
    assert isinstance(guess.outcome, Outcome)
    assert guess.cost.cpu_seconds >= 0
    assert guess.cost.wall_seconds >= 0
    assert all(isinstance(note, str) for note in guess.notes)
    assert pickle.loads(pickle.dumps(guess)).outcome is guess.outcome


@every_attack
def test_an_eavesdropper_without_labels_gets_an_answer(name):
    needs = class_of(name).needs
    threat = ThreatModel("eavesdropper")
    if not needs <= threat.known:
        pytest.skip("needs more than an eavesdropper knows")
    guess = thorough(name)(problem(name, threat="eavesdropper"), key=5)
    assert guess.inputs.shape == (1, *events_of(name)[0].shape)
    assert guess.targets.shape == (1,)
    assert guess.notes, "where the label comes from must be said"
    if not class_of(name).baseline:
        assert guess.targets.tolist() == [3]


@every_attack
def test_equal_keys_give_equal_bits(name):
    again = brief(name)(problem(name), key=5)
    first = answer(name)
    assert torch.equal(again.inputs, first.inputs)
    assert torch.equal(again.targets, first.targets)
    assert again.objective == first.objective


@every_attack
def test_nothing_outside_is_touched(name, tmp_path, monkeypatch):
    """No global random state, no folder, no gradient left, no tensor changed (S18)."""
    monkeypatch.chdir(tmp_path)
    p = reveal(world(name))
    before = {n: t.clone() for n, t in tensors(p).items()}
    assert p.task is not UNKNOWN
    mode = p.task.model.training
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    attack = brief(name)
    attack(p, key=1)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, default)
    assert os.getcwd() == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for n, t in tensors(p).items():
        assert torch.equal(t, before[n]), n
    assert p.task.model.training == mode
    assert all(q.grad is None for q in p.task.model.parameters())
    assert all(not m._forward_hooks for m in p.task.model.modules())


@every_attack
def test_the_attack_is_plain_data(name):
    attack = brief(name)
    assert dataclasses.is_dataclass(attack)
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert exhume.attack(name, **dataclasses.asdict(attack)) == attack


@every_attack
def test_a_missing_fact_is_named(name):
    attack = brief(name)
    for fact in sorted(attack.needs, key=lambda f: f.name):
        blind = ThreatModel("labels-known").without(fact)
        w = world(name)
        with pytest.raises(MissingKnowledge) as caught:
            attack(blind.reveal(w, w.observe()))
        assert fact.value in str(caught.value)


@every_attack
def test_undeclared_facts_change_nothing(name):
    """The attack gets what it declares; hiding the rest gives the same bits (S16)."""
    attack = brief(name)
    p = problem(name)
    declared = p.restricted(attack.needs | attack.uses)
    assert torch.equal(attack(declared, key=5).inputs, answer(name).inputs)


@every_pair
def test_the_reported_objective_is_that_of_the_answer(name, event):
    """Not that of the iterate before the last step or projection (S6, S30)."""
    guess = answer(name, event)
    p = problem(name, event)
    value = brief(name).objective(p, guess.inputs, guess.targets)
    if guess.objective is None:
        assert value is None
    else:
        assert value == pytest.approx(guess.objective, rel=1e-4, abs=1e-12)


@every_attack
def test_the_truth_is_at_least_as_good_as_a_stranger(name):
    """The objective is smallest at the truth of a noiseless problem (S3, S19)."""
    w, p = world(name), problem(name)
    attack = brief(name)
    truth = attack.objective(p, w.batch.inputs, w.batch.targets)
    if truth is None:
        pytest.skip("has no objective")
    stranger = attack.objective(p, smooth(p.spec, 1, 99), w.batch.targets)
    assert stranger is not None
    assert truth < stranger


@every_attack
def test_defaults_work_offline_within_a_budget(name, monkeypatch):
    def refuse(*_args, **_options):
        pytest.fail("an attack opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    cls = class_of(name)
    budget = {"seconds": 0.3} if "seconds" in {f.name for f in fields(cls)} else {}
    guess = cls(**budget)(problem(name))
    assert bool(torch.isfinite(guess.inputs).all())
    assert guess.cost.cpu_seconds < 10


@every_attack
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_an_observation_that_is_not_finite_is_refused(name, bad):
    p = problem(name)
    tensor = matrix_of(p)
    spoiled = p.observed[tensor].clone()
    spoiled[0, 1] = bad
    found = rf"not finite\n.*'{re.escape(tensor)}': 1 of {spoiled.numel()}"
    with pytest.raises(Inconsistent, match=found):
        brief(name)(replace(p, observed={**p.observed, tensor: spoiled}))


@every_attack
@pytest.mark.parametrize("labels", [(3,), (3, 0)], ids=["one", "two"])
def test_a_vanishing_gradient_gives_a_finite_answer(name, labels):
    """A converged model leaks nothing, and that is no reason to crash (S20)."""
    p = problem(name, labels=labels)
    silent = replace(p, observed={n: 0 * t for n, t in p.observed.items()})
    guess = brief(name)(silent, key=5)
    assert bool(torch.isfinite(guess.inputs).all())
    assert bool((guess.inputs == p.spec.clamp(guess.inputs)).all())


@every_attack
def test_a_misfit_of_tensors_is_named(name):
    """A missing, extra or reshaped tensor raises, never cuts a list short (S12)."""
    p = problem(name)
    tensor = matrix_of(p)
    missing = {n: t for n, t in p.observed.items() if n != tensor}
    extra = {**p.observed, "further.bias": torch.zeros(5)}
    reshaped = {**p.observed, tensor: p.observed[tensor].T}
    for observed, named in [
        (missing, tensor), (extra, "further.bias"), (reshaped, tensor)
    ]:  # fmt: skip
        with pytest.raises(Inconsistent, match=f"tensor '{re.escape(named)}'"):
            brief(name)(replace(p, observed=observed))


@every_attack
def test_the_order_of_names_does_not_matter(name):
    p = problem(name)
    turned = replace(p, observed=dict(reversed(p.observed.items())))
    found = brief(name)(turned, key=5).inputs
    if class_of(name).baseline:
        assert torch.equal(found, answer(name).inputs)
    else:
        assert bool(torch.isfinite(found).all())


@every_attack
def test_an_attack_beats_the_prior_mean_on_an_easy_problem(name):
    if class_of(name).baseline:
        pytest.skip("is a chance level")
    if class_of(name).recognises:
        pytest.skip("answers with what is public")
    w, p = world(name), problem(name)
    chance = float((PriorMean()(p).inputs - w.batch.inputs).square().mean())
    guess = thorough(name)(p, key=0)
    if guess.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(guess.notes[0])
    error = float((guess.inputs - w.batch.inputs).square().mean())
    assert error < 0.5 * chance


@every_attack
def test_the_methods_of_the_role_can_be_called(name):
    attack, p = brief(name), problem(name)
    start = smooth(p.spec, 1, 7)
    assert attack.run(p.restricted(attack.needs | attack.uses), 0) is not None
    value = attack.objective(p, start, torch.tensor([3]))
    assert value is None or np.isfinite(value)
    if isinstance(attack, MatchingAttack):
        assert attack.run_from(p, 0, start) is not None
        assert attack.design(p) is not None
