"""Conformance of attacks: every registered one, on images and vectors.

A new attack joins by being registered. If its defaults take more than a second on an
8 x 8 image, give it a row in ``QUICK``.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
import random
import socket
from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

import exhume
from exhume import registry
from exhume.attacks.prior_mean import PriorMean
from exhume.errors import Inconsistent, MissingKnowledge
from exhume.keys import generator
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.reconstruction import Outcome, Reconstruction, Stopwatch
from exhume.problem.threat import ThreatModel
from toys import (
    COLOUR,
    GRAY,
    VECTOR,
    make_world,
    mlp,
    network_for,
    observation_for,
    reveal,
    seeded,
    smooth,
)

#: attack → options that make it quick on a toy problem
QUICK: dict[str, dict] = {
    "analytic-linear": {},
    "covariance-aware": {"iterations": 5, "restarts": 1},
    "dlg": {"iterations": 6},
    "embedding": {
        "head_options": {"iterations": 60, "polish": 25, "newton": 10, "rounds": 0},
        "image_options": {"iterations": 10, "inner_iterations": 50},
    },
    "gauss-newton": {"iterations": 10, "inner_iterations": 50},
    "gradinversion": {"iterations": 30, "restarts": 2},
    "idlg": {"iterations": 6},
    "inverting-gradients": {"iterations": 100},
    "kkt": {"iterations": 40, "restarts": 1},
    "nearest-public": {"gradients": 20},
    "pca": {},
    "prior-mean": {},
    "sample-splitting": {"iterations": 30, "rounds": 1, "restarts": 1},
    "subspace": {
        "options": {"iterations": 60, "polish": 25, "newton": 10, "rounds": 0}
    },
    "tangent-kernel": {"iterations": 60, "polish": 25, "newton": 10, "rounds": 0},
    "tensor": {"restarts": 20, "starts": 2},
}
#: attack → what it needs beyond ``QUICK`` to win on the easy problem
EASY: dict[str, dict] = {
    "dlg": {"iterations": 20},
    "gradinversion": {"iterations": 300, "restarts": 1, "gradient": 1.0},
    "idlg": {"iterations": 20},
    "kkt": {"iterations": 300, "rate": 0.05},
    "sample-splitting": {"iterations": 300, "rate": 0.05},
}

NAMES = registry.names("attack")
SPECS = {"gray": GRAY, "colour": COLOUR, "vector": VECTOR}
BASELINES = {"nearest-public", "prior-mean"}
#: not applicable to the worlds of this suite; tested in files of their own
ELSEWHERE = {"covariance-aware"}
#: attacks on a network with a frozen backbone
OF_A_HEAD = {"embedding"}
#: attacks whose defaults suit trained weights, though options may suit more
OF_WEIGHTS = {"sample-splitting"}
every_attack = pytest.mark.parametrize("name", NAMES)


def quick(name: str):
    return exhume.attack(name, **QUICK.get(name, {}))


def shared_with(name: str) -> str:
    """Return the observation that an attack is tried on, see ``network_for``."""
    if name in OF_A_HEAD:
        return "head"
    if name in OF_WEIGHTS:
        return "weights"
    inverts = registry.find("attack", name).inverts
    return "gradient" if "gradient" in inverts else min(inverts)


@lru_cache
def world(kind: str, labels: tuple[int, ...] = (3,), shared: str = "gradient"):
    spec = SPECS[kind]
    return make_world(
        spec,
        labels=labels,
        model=network_for(shared, spec),
        observation=observation_for(shared),
        key=1,
    )


@lru_cache
def problem(
    kind: str,
    threat: str = "labels-known",
    labels: tuple[int, ...] = (3,),
    shared: str = "gradient",
):
    return reveal(world(kind, labels, shared), threat)


@lru_cache
def answer(
    name: str, kind: str, threat: str = "labels-known", labels: tuple[int, ...] = (3,)
) -> Reconstruction:
    return quick(name)(problem(kind, threat, labels, shared_with(name)), key=5)


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


def test_every_row_has_an_attack():
    assert set(QUICK) | set(EASY) <= set(NAMES)
    baselines = {n for n in NAMES if registry.find("attack", n).baseline}
    assert baselines == BASELINES


@every_attack
@pytest.mark.parametrize("labels", [(3,), (3, 0)], ids=["one", "two"])
@pytest.mark.parametrize("kind", SPECS)
def test_the_answer_is_well_formed(name, kind, labels):
    spec, size = SPECS[kind], len(labels)
    guess = answer(name, kind, "labels-known", labels)
    assert guess.inputs.shape == (size, *spec.shape)
    assert guess.inputs.dtype == torch.float32
    assert bool(torch.isfinite(guess.inputs).all())
    assert bool((guess.inputs == spec.clamp(guess.inputs)).all())
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
    needs = registry.find("attack", name).needs
    threat = ThreatModel("eavesdropper")
    if not needs <= threat.known:
        pytest.skip("needs more than an eavesdropper knows")
    guess = answer(name, "gray", "eavesdropper")
    assert guess.inputs.shape == (1, 1, 8, 8)
    assert guess.targets.shape == (1,)
    assert guess.notes, "where the label comes from must be said"
    if name not in BASELINES:
        assert guess.targets.tolist() == [3]


@every_attack
def test_equal_keys_give_equal_bits(name):
    again = quick(name)(problem("gray", shared=shared_with(name)), key=5)
    first = answer(name, "gray")
    assert torch.equal(again.inputs, first.inputs)
    assert torch.equal(again.targets, first.targets)
    assert again.objective == first.objective


@every_attack
def test_nothing_outside_is_touched(name, tmp_path, monkeypatch):
    """No global random state, no folder, no gradient left, no tensor changed (S18)."""
    monkeypatch.chdir(tmp_path)
    p = reveal(world("gray", shared=shared_with(name)))
    before = {n: t.clone() for n, t in tensors(p).items()}
    assert p.task is not UNKNOWN
    mode = p.task.model.training
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    attack = quick(name)
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
    attack = quick(name)
    assert dataclasses.is_dataclass(attack)
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert exhume.attack(name, **dataclasses.asdict(attack)) == attack


@every_attack
def test_a_missing_fact_is_named(name):
    attack = quick(name)
    for fact in sorted(attack.needs, key=lambda f: f.name):
        blind = ThreatModel("labels-known").without(fact)
        w = world("gray", shared=shared_with(name))
        with pytest.raises(MissingKnowledge) as caught:
            attack(blind.reveal(w, w.observe()))
        assert fact.value in str(caught.value)


@every_attack
def test_undeclared_facts_change_nothing(name):
    """The attack gets what it declares; hiding the rest gives the same bits (S16)."""
    attack = quick(name)
    p = problem("gray", shared=shared_with(name))
    declared = p.restricted(attack.needs | attack.uses)
    assert torch.equal(attack(declared, key=5).inputs, answer(name, "gray").inputs)


@every_attack
@pytest.mark.parametrize("kind", SPECS)
def test_the_reported_objective_is_that_of_the_answer(name, kind):
    """Not that of the iterate before the last step or projection (S6, S30)."""
    guess = answer(name, kind)
    p = problem(kind, shared=shared_with(name))
    value = quick(name).objective(p, guess.inputs, guess.targets)
    if guess.objective is None:
        assert value is None
    else:
        assert value == pytest.approx(guess.objective, rel=1e-4, abs=1e-12)


@every_attack
def test_the_truth_is_at_least_as_good_as_a_stranger(name):
    """The objective is smallest at the truth of a noiseless problem (S3, S19)."""
    shared = shared_with(name)
    w, p = world("gray", shared=shared), problem("gray", shared=shared)
    attack = quick(name)
    truth = attack.objective(p, w.batch.inputs, w.batch.targets)
    if truth is None:
        pytest.skip("has no objective")
    stranger = attack.objective(p, smooth(GRAY, 1, 99), w.batch.targets)
    assert stranger is not None
    assert truth < stranger


@every_attack
def test_defaults_work_offline_within_a_budget(name, monkeypatch):
    def refuse(*_args, **_options):
        pytest.fail("an attack opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    cls = registry.find("attack", name)
    budget = {"seconds": 0.3} if "seconds" in {f.name for f in fields(cls)} else {}
    guess = exhume.attack(name, **budget)(problem("gray", shared=shared_with(name)))
    assert bool(torch.isfinite(guess.inputs).all())
    assert guess.cost.cpu_seconds < 10


@every_attack
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_an_observation_that_is_not_finite_is_refused(name, bad):
    p = problem("gray", shared=shared_with(name))
    spoiled = p.observed["1.bias"].clone()
    spoiled[1] = bad
    with pytest.raises(Inconsistent, match=r"not finite\n.*'1\.bias': 1 of 24"):
        quick(name)(replace(p, observed={**p.observed, "1.bias": spoiled}))


@every_attack
@pytest.mark.parametrize("labels", [(3,), (3, 0)], ids=["one", "two"])
def test_a_vanishing_gradient_gives_a_finite_answer(name, labels):
    """A converged model leaks nothing, and that is no reason to crash (S20)."""
    p = problem("gray", "labels-known", labels, shared_with(name))
    silent = replace(p, observed={n: 0 * t for n, t in p.observed.items()})
    guess = quick(name)(silent, key=5)
    assert bool(torch.isfinite(guess.inputs).all())
    assert bool((guess.inputs == GRAY.clamp(guess.inputs)).all())


@every_attack
def test_a_misfit_of_tensors_is_named(name):
    """A missing, extra or reshaped tensor raises, never cuts a list short (S12)."""
    p = problem("gray", shared=shared_with(name))
    missing = {n: t for n, t in p.observed.items() if n != "1.bias"}
    extra = {**p.observed, "5.bias": torch.zeros(5)}
    reshaped = {**p.observed, "3.weight": p.observed["3.weight"].T}
    for observed, tensor in [
        (missing, "1.bias"), (extra, "5.bias"), (reshaped, "3.weight")
    ]:  # fmt: skip
        with pytest.raises(Inconsistent, match=f"tensor '{tensor}'"):
            quick(name)(replace(p, observed=observed))


@every_attack
def test_the_order_of_names_does_not_matter(name):
    p = problem("gray", shared=shared_with(name))
    turned = replace(p, observed=dict(reversed(p.observed.items())))
    found = quick(name)(turned, key=5).inputs
    if name in BASELINES | {"analytic-linear"}:
        assert torch.equal(found, answer(name, "gray").inputs)
    else:
        assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("name", sorted(set(NAMES) - BASELINES - ELSEWHERE))
def test_an_attack_beats_the_prior_mean_on_an_easy_problem(name):
    shared = shared_with(name)
    w, p = world("gray", shared=shared), problem("gray", shared=shared)
    chance = float((PriorMean()(p).inputs - w.batch.inputs).square().mean())
    attack = exhume.attack(name, **{**QUICK.get(name, {}), **EASY.get(name, {})})
    error = float((attack(p, key=0).inputs - w.batch.inputs).square().mean())
    assert error < 0.5 * chance


@every_attack
def test_every_public_method_can_be_called(name):
    """A method that no one ever calls is a method that does not work (S29)."""
    attack, p = quick(name), problem("gray", shared=shared_with(name))
    start = smooth(GRAY, 1, 7)
    calls = {
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


# --- the chance levels ---------------------------------------------------------------


def test_prior_mean_ignores_the_observation():
    p = problem("gray")
    other = replace(p, observed={n: -t for n, t in p.observed.items()})
    first, second = PriorMean()(p), PriorMean()(other, key=3)
    assert torch.equal(first.inputs, second.inputs)
    assert first.inputs.unique().tolist() == [0.5]


def test_prior_mean_answers_the_mean_of_a_fitted_prior():
    w = world("gray")
    assert w.public is not None
    density = exhume.prior("gaussian").fit(w.public, w.task)
    p = replace(problem("gray", labels=(1, 2)), prior=density)
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
        Greedy()(problem("gray"))
