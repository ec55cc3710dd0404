"""The vocabulary refuses what makes no sense, in one clear sentence."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import exhume
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.errors import Inconsistent, InvalidInput, MissingKnowledge, UnknownName
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import _FIELDS, UNKNOWN, Fact, Problem
from exhume.problem.reconstruction import Outcome, Stopwatch
from exhume.problem.threat import PRESETS, ThreatModel, sorted_targets
from exhume.problem.tree import (
    add,
    check_finite,
    check_same_layout,
    detached,
    dot,
    flatten,
    leaves,
    norm,
    scale,
    size,
    subtract,
    unflatten,
)
from exhume.problem.world import World
from toys import GRAY, VECTOR, make_world, reveal, seeded, smooth

# --- events and batches --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sound", (3,)), "no event is called 'sound'; known: image, "),
        (("image", (3, 8)), "needs 3 positive sizes, got shape \\[3, 8\\]"),
        (("vector", (0,)), "needs 1 positive size, got"),
        (("vector", (3,), 0.0), "both ends of the range"),
        (("vector", (3,), 1.0, 1.0), "range \\[1.0, 1.0\\] is empty"),
    ],
)
def test_an_impossible_event_is_refused(arguments, message):
    with pytest.raises((InvalidInput, UnknownName), match=message):
        EventSpec(*arguments)


def test_events_know_their_size_and_range():
    image, vector = EventSpec.image(3, 4, 5), EventSpec.vector(7)
    assert (image.kind, image.shape, image.dimension, image.peak) == (
        "image", (3, 4, 5), 60, 1.0
    )  # fmt: skip
    assert (vector.dimension, vector.peak, vector.low) == (7, None, None)
    assert EventSpec.vector(2, -1, 3).peak == 4
    wide = torch.tensor([-2.0, 0.3, 5.0])
    assert image.clamp(wide).tolist() == pytest.approx([0.0, 0.3, 1.0])
    assert vector.clamp(wide) is wide
    assert EventSpec("vector", [3]).shape == (3,)  # type: ignore[arg-type]


def test_a_batch_must_fit_its_event():
    x, y = smooth(GRAY, 2, 0), torch.tensor([0, 1])
    bad = [
        (x.to(torch.uint8), y, "inputs have type torch.uint8; convert them to float"),
        (x[:, :, 1:], y, r"inputs have shape \[2, 1, 7, 8\]; expected \[B, 1, 8, 8\]"),
        (x[:0], y[:0], "B ≥ 1"),
        (x, y[:1], "2 inputs but targets have shape"),
        (x, y.to(torch.int32), "expected int64 or float"),
        (x * float("nan"), y, "inputs contain NaN"),
        (x, y / 0.0, "targets contain NaN or infinity"),
        (255 * x, y, r"outside the declared range \[0, 1\]; rescale"),
    ]
    for inputs, targets, message in bad:
        with pytest.raises(InvalidInput, match=message):
            Batch(inputs, targets, GRAY)


def test_a_batch_can_be_cut_and_converted():
    batch = Batch(smooth(GRAY, 3, 0), torch.tensor([0, 1, 2]), GRAY)
    part = batch.select([2, 0])
    assert len(part) == 2
    assert part.targets.tolist() == [2, 0]
    assert torch.equal(part.inputs[0], batch.inputs[2])
    double = batch.to(torch.float64)
    assert double.inputs.dtype == torch.float64
    assert double.targets.dtype == torch.int64
    assert batch.found_in(part).tolist() == [True, False, True]


# --- worlds --------------------------------------------------------------------------


def test_public_examples_must_be_others():
    world = make_world()
    assert world.public is not None
    leaked = replace(world.public, inputs=world.public.inputs.clone())
    leaked.inputs[7] = world.batch.inputs[0]
    with pytest.raises(InvalidInput, match="private example is also among the public"):
        replace(world, public=leaked)
    other = Batch(smooth(VECTOR, 2, 0), torch.tensor([0, 1]), VECTOR)
    with pytest.raises(InvalidInput, match=r"public examples have shape \[12\]"):
        World(world.task, world.batch, world.mechanism, other)


# --- threat models -------------------------------------------------------------------


def full_world():
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)]
    world = make_world(
        labels=(4, 2),
        model=seeded(nn.Sequential(nn.Flatten(), *layers), 0),
        defenses=(GaussianNoise(std=0.1),),
    )
    assert world.public is not None
    prior = exhume.prior("gaussian").fit(world.public, world.task)
    return replace(world, prior=prior)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_reveals_its_facts_and_no_other(name):
    world = full_world()
    threat = ThreatModel(name)
    problem = threat.reveal(world, world.observe())
    assert {f for f in Fact if problem.knows(f)} == threat.known
    assert threat.description.endswith(".")
    assert threat.letter
    assert problem.spec == GRAY
    assert problem.observed.keys() == world.task.parameters().keys()


def test_the_presets_are_ordered_by_knowledge():
    known = {name: ThreatModel(name).known for name in PRESETS}
    chain = ["eavesdropper", "parameter-aware", "data-enhanced", "labels-known",
             "statistics-known"]  # fmt: skip
    for weaker, stronger in pairwise(chain):
        assert known[weaker] < known[stronger]
    assert known["labels-known"] - known["defense-unknown"] == {Fact.DEFENSE}


def test_the_revealed_values_are_the_right_ones():
    world = full_world()
    observation = world.observe(key=3)
    problem = ThreatModel("statistics-known").reveal(world, observation)
    assert problem.task is world.task
    assert problem.targets.tolist() == [2, 4]  # type: ignore[union-attr]
    assert problem.batch_size == 2
    assert problem.observation_model == world.mechanism.observation
    assert problem.public is world.public
    assert problem.prior is world.prior
    assert problem.law.noisy  # type: ignore[union-attr]
    (name,) = problem.batch_statistics  # type: ignore[misc]
    mean, variance = problem.batch_statistics[name]  # type: ignore[index]
    hidden = world.batch.inputs.flatten(1) @ world.task.model[1].weight.T
    hidden = (hidden + world.task.model[1].bias).detach()
    torch.testing.assert_close(mean, hidden.mean(0))
    torch.testing.assert_close(variance, hidden.var(0, correction=0))


def test_own_threat_models_and_weaker_ones():
    own = ThreatModel("mine", facts={Fact.WEIGHTS})  # type: ignore[arg-type]
    assert own.known == {Fact.WEIGHTS}
    weaker = ThreatModel("labels-known").without(Fact.LABELS, Fact.PRIOR)
    assert weaker.name == "labels-known without labels, prior"
    assert weaker.known == ThreatModel("labels-known").known - {
        Fact.LABELS,
        Fact.PRIOR,
    }
    with pytest.raises(UnknownName, match="did you mean 'labels-known'"):
        ThreatModel("label-known")


def test_a_fact_that_the_world_lacks_stays_unknown():
    world = make_world(public=0)
    problem = reveal(world, "statistics-known")
    for fact in (Fact.PRIOR, Fact.PUBLIC_DATA, Fact.BATCH_NORM_STATISTICS):
        assert not problem.knows(fact)
        with pytest.raises(MissingKnowledge, match="which is not given"):
            problem.require(fact)


def test_unknown_is_no_boolean_and_survives_pickling():
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(UNKNOWN)
    assert pickle.loads(pickle.dumps(UNKNOWN)) is UNKNOWN


def test_every_fact_is_a_field_of_the_problem():
    problem = Problem({}, GRAY)
    names = {f.name for f in dataclasses.fields(Problem)} - {"observed", "spec"}
    assert {_FIELDS[fact][0] for fact in Fact} == names
    assert len(names) == len(Fact)
    assert all(getattr(problem, name) is UNKNOWN for name in names)
    for fact in Fact:
        with pytest.raises(MissingKnowledge, match="; ") as caught:
            problem.require(fact)
        assert fact.value in str(caught.value)


def test_restricting_hides_exactly_the_rest():
    world = full_world()
    problem = ThreatModel("statistics-known").reveal(world, world.observe())
    some = problem.restricted(frozenset({Fact.WEIGHTS, Fact.DEFENSE}))
    assert {f for f in Fact if some.knows(f)} == {Fact.WEIGHTS, Fact.DEFENSE}
    assert some.observed is problem.observed


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=6
    )
)
def test_sorted_targets_forget_the_order(rows):
    targets = torch.tensor(rows, dtype=torch.float64)
    turned = targets[torch.arange(len(rows) - 1, -1, -1)]
    assert torch.equal(sorted_targets(targets), sorted_targets(turned))
    assert sorted(sorted_targets(targets).tolist()) == sorted(targets.tolist())


# --- trees, outcomes -----------------------------------------------------------------


def test_trees_are_vectors():
    a = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    b = {"w": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([-1.0])}
    va, vb = flatten(a), flatten(b)
    assert torch.equal(flatten(add(a, b)), va + vb)
    assert torch.equal(flatten(subtract(a, b)), va - vb)
    assert torch.equal(flatten(scale(2, a)), 2 * va)
    assert float(dot(a, b)) == float(va @ vb)
    assert float(norm(a)) == pytest.approx(float(va.norm()))
    assert size(a) == 3
    assert torch.equal(unflatten(va, a)["w"], a["w"])


def test_trees_lose_their_history_or_begin_one():
    tree = {"w": torch.ones(2, requires_grad=True) * 3, "b": torch.zeros(1)}
    for changed, differentiable in ((detached(tree), False), (leaves(tree), True)):
        assert list(changed) == ["w", "b"]
        for name, tensor in changed.items():
            assert torch.equal(tensor, tree[name])
            assert tensor.is_leaf
            assert tensor.requires_grad is differentiable
    assert tree["w"].requires_grad
    assert not tree["b"].requires_grad


def test_layout_and_values_are_checked_with_every_problem_listed():
    like = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    wrong = {"w": torch.zeros(3, 2), "c": torch.zeros(1)}
    with pytest.raises(Inconsistent) as caught:
        check_same_layout(wrong, like, what="the update")
    assert len(caught.value.problems) == 3
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    with pytest.raises(Inconsistent, match="'b': 1 of 2 values"):
        check_finite({"b": torch.tensor([1.0, float("inf")])}, what="it")


def test_outcomes_are_sentences():
    assert all(outcome.value.endswith(".") for outcome in Outcome)


def test_a_stopwatch_counts():
    watch = Stopwatch()
    watch.count()
    watch.count(4)
    cost = watch.cost()
    assert cost.evaluations == 5
    assert cost.cpu_seconds >= 0
    assert cost.wall_seconds > 0


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_must_be_one_of_the_classes(label):
    made = make_world(GRAY)
    wrong = Batch(made.batch.inputs, torch.full((len(made.batch),), label), GRAY)
    with pytest.raises(InvalidInput, match="the model has 5 outputs"):
        replace(made, batch=wrong)
