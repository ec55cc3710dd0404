"""The exchangeable parts of the optimisation engine, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.closeness import assert_close_to_scale
from engine_worlds import make_problem, make_world, network, tree
from exhume.attacks.engine.adam import cosine_decay, step_decay
from exhume.attacks.engine.discrepancy import (
    absolute_deviation,
    cosine_distance,
    gaussian_likelihood,
    laplace_likelihood,
    layerwise_euclidean,
    likelihood_precision,
    make_discrepancy,
    squared_euclidean,
)
from exhume.attacks.engine.group import (
    consensus,
    group_consistency,
    match_order,
    translation,
)
from exhume.attacks.engine.start import _in_order, initial, initial_with_note
from exhume.attacks.inverting_gradients import InvertingGradients
from exhume.config import build, describe
from exhume.errors import InvalidInput, MissingKnowledge, UnknownName
from exhume.keys import generator
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN
from exhume.problem.law import Law
from exhume.problem.reconstruction import Cost, Outcome, Reconstruction
from exhume.problem.relaxation import Units
from exhume.problem.task import Normalisation, Task
from exhume.problem.tree import scale

# --- formulas ------------------------------------------------------------------------


def test_discrepancies_against_numpy():
    a, b = tree([1.0, -2.0, 3.0], [0.5]), tree([0.0, 1.0, 2.5], [-1.0])
    u = np.array([1.0, -2.0, 3.0, 0.5])
    v = np.array([0.0, 1.0, 2.5, -1.0])
    assert float(squared_euclidean(a, b)) == pytest.approx(((u - v) ** 2).sum())
    assert float(absolute_deviation(a, b)) == pytest.approx(np.abs(u - v).sum())
    cosine = 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert float(cosine_distance(a, b)) == pytest.approx(cosine)
    layers = np.linalg.norm((u - v)[:3]) + np.linalg.norm((u - v)[3:])
    assert float(layerwise_euclidean(a, b)) == pytest.approx(layers)
    assert float(gaussian_likelihood(a, b)) == pytest.approx(((u - v) ** 2).sum() / 2)
    absolute = np.sqrt(2) * np.abs(u - v).sum()
    assert float(laplace_likelihood(a, b)) == pytest.approx(absolute)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    factor=st.floats(0.1, 10),
)
def test_discrepancies_have_their_minimum_at_equality(values, factor):
    other, here = tree(values), tree([1.0, -2.0, 0.5])
    for distance in (squared_euclidean, absolute_deviation, layerwise_euclidean):
        assert float(distance(here, here)) == 0
        assert float(distance(other, here)) >= 0
    assert float(cosine_distance(scale(factor, here), here)) == pytest.approx(0)
    assert -1e-12 <= float(cosine_distance(other, here)) <= 2 + 1e-12
    nothing = scale(0.0, here)
    assert float(cosine_distance(nothing, here)) == 1


def test_precision_of_a_release_that_is_noisy_in_part():
    observed = tree([3.0, 4.0], [12.0])
    whole = Law(variance={n: torch.tensor(0.25) for n in observed})
    precision = likelihood_precision(observed, whole)
    assert all(torch.equal(p, torch.full_like(p, 4.0)) for p in precision.values())

    part = Law(variance={"t0": torch.tensor(0.25)})
    precision = likelihood_precision(observed, part)
    assert torch.allclose(precision["t0"], torch.full((2,), 4.0, dtype=torch.float64))
    # An exact coordinate counts as noisy with a tenth of the smallest deviation.
    assert float(precision["t1"]) == pytest.approx(1 / (0.1 * 0.5) ** 2)


def test_learning_rates_follow_the_published_schedules():
    rates = [step_decay(k, 24_000) for k in (0, 8_997, 8_998, 15_000, 21_016)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.001])
    assert cosine_decay(0, 100, warmup=50) == pytest.approx(1 / 50)
    assert cosine_decay(50, 100, warmup=10) == pytest.approx(0.5)
    assert cosine_decay(100, 100, warmup=10) == pytest.approx(0.0)


# --- units and starts -----------------------------------------------------------------


def test_standard_units_are_the_models_or_a_quarter_of_the_range():
    spec = EventSpec.image(3, 4, 4)
    plain = Units.standard(Task(network(spec)), spec)
    assert (float(plain.centre), float(plain.scale)) == (0.5, 0.25)
    normalise = Normalisation((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    own = Units.standard(Task(network(spec), normalise=normalise), spec)
    x = torch.rand(2, 3, 4, 4, generator=generator(0))
    assert torch.allclose(own.from_data(x), normalise(x))


def test_starts_have_their_shape_spread_and_randomness():
    world = make_world(EventSpec.image(3, 16, 16), (0, 1))
    public = Batch(
        torch.rand(3, 3, 16, 16, generator=generator(9)),
        torch.tensor([0, 1, 2]),
        world.batch.spec,
    )
    problem = make_problem(replace(world, public=public))
    draws = {
        kind: initial(problem, kind, 2, generator(0))
        for kind in ("prior-mean", "normal", "raw-normal", "uniform", "public")
    }
    assert all(d.shape == (2, 3, 16, 16) for d in draws.values())
    assert torch.equal(draws["prior-mean"], torch.full((2, 3, 16, 16), 0.5))
    count = draws["normal"].numel()
    # Standard errors of mean and spread: σ/√n and σ/√(2n); five of each.
    for kind, mean, spread in (("normal", 0.5, 0.25), ("raw-normal", 0.0, 1.0)):
        assert abs(float(draws[kind].mean()) - mean) < 5 * spread / count**0.5
        assert abs(float(draws[kind].std()) - spread) < 5 * spread / (2 * count) ** 0.5
    assert 0 <= float(draws["uniform"].min()) < float(draws["uniform"].max()) <= 1
    assert all(any(torch.equal(d, p) for p in public.inputs) for d in draws["public"])
    assert not torch.equal(
        initial(problem, "normal", 2, generator(0)),
        initial(problem, "normal", 2, generator(1)),
    )
    with pytest.raises(InvalidInput, match="prior-mean"):
        initial(problem, "zeros", 2, generator(0))
    with pytest.raises(MissingKnowledge):
        initial(replace(problem, public=UNKNOWN), "public", 2, generator(0))


def test_analytic_start_or_the_reason_why_not():
    vector = make_world(EventSpec.vector(6), dtype=torch.float64)
    start, note = initial_with_note(make_problem(vector), "analytic", 1, generator(0))
    assert note == ""
    assert torch.allclose(start, vector.batch.inputs, atol=1e-6)

    # A convolution comes first, so no linear layer reads the image itself.
    image = make_problem(make_world())
    start, note = initial_with_note(image, "analytic", 1, generator(0))
    if note:
        assert torch.equal(start, torch.full((1, 1, 8, 8), 0.5))
    assert start.shape == (1, 1, 8, 8)


def test_estimates_of_the_closed_form_come_in_the_order_of_the_labels():
    world = make_world(EventSpec.vector(2), (0, 1, 3))
    estimates = torch.tensor([[3.0, 3.0], [0.0, 0.0]])
    answer = Reconstruction(
        inputs=estimates,
        targets=torch.tensor([3, 0]),
        objective=None,
        outcome=Outcome.CLOSED_FORM,
        cost=Cost(0.0, 0.0, 0),
    )
    ordered = _in_order(make_problem(world), answer, 3)
    assert ordered[0].tolist() == [0.0, 0.0]
    assert ordered[2].tolist() == [3.0, 3.0]
    assert any(torch.equal(ordered[1], e) for e in estimates)  # too few: one repeats


# --- group consistency ---------------------------------------------------------------


def test_group_consistency_is_a_mean_square():
    x = torch.zeros(2, 1, 2, 2)
    mean = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 2.0)])
    assert float(group_consistency(x, mean)) == pytest.approx((1 + 4) / 2)


def test_seeds_are_matched_before_the_mean_is_taken():
    a = torch.rand(3, 1, 4, 4, generator=generator(0))
    order = torch.tensor([2, 0, 1])
    assert torch.equal(a[order][match_order(a[order], a)], a)
    means = consensus([a, a[order] + 0.1], leader=0, labels=None, align=False)
    assert torch.allclose(means[0], a + 0.05)
    assert torch.allclose(means[1], a[order] + 0.05)


def test_only_examples_with_equal_labels_change_places():
    a = torch.rand(3, 1, 4, 4, generator=generator(0))
    mixed = a[torch.tensor([1, 0, 2])]
    assert match_order(mixed, a, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert match_order(mixed, a, torch.tensor([0, 0, 2])).tolist() == [1, 0, 2]
    # The third may not move although another one is nearer.
    cycled = a[torch.tensor([2, 0, 1])]
    assert match_order(cycled, a, torch.tensor([4, 4, 2])).tolist()[2] == 2
    soft = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    assert match_order(mixed, a, soft).tolist() == [1, 0, 2]


def test_translations_are_estimated_and_undone():
    a = torch.rand(1, 3, 8, 9, generator=generator(1))
    moved = a.roll((2, -3), (-2, -1))
    assert translation(moved, a).tolist() == [[6, 3]]
    means = consensus([a, moved], leader=0, labels=None, align=True)
    assert torch.allclose(means[0], a)
    assert torch.allclose(means[1], moved)


def test_a_discrepancy_of_one_s_own_takes_the_place_of_ours():
    problem, few = make_problem(make_world(dtype=torch.float64)), {"iterations": 5}
    ours = InvertingGradients(**few)
    own = InvertingGradients(**few, discrepancy="audit_lab.distances:one_minus_cosine")
    # Another order of sums: the signs of five steps agree nevertheless.
    one, other = ours(problem, key=0), own(problem, key=0)
    assert_close_to_scale(other.inputs, one.inputs, 1e-9)
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert describe(own)["discrepancy"] == own.discrepancy
    assert "discrepancy" not in describe(ours)  # stored trials keep their ids


def test_a_discrepancy_of_one_s_own_is_taken_between_whitened_updates():
    update, seen = tree([1.0, 2.0], [3.0]), tree([1.5, 1.0], [2.0])
    law = Law(variance={"t0": torch.tensor(0.25), "t1": torch.tensor(4.0)})
    name = "audit_lab.distances:weighted"
    plain = make_discrepancy(name, seen, None, torch.float64)
    assert float(plain(update)) == pytest.approx(0.25 + 1 + 2 * 1)
    noisy = make_discrepancy(name, seen, law, torch.float64)
    assert float(noisy(update)) == pytest.approx((0.25 + 1) / 0.25 + 2 * 1 / 4)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cosin", "did you mean 'cosine'"),
        ("audit_lab.distances:nothing", "has no function 'nothing'"),
        ("no_such_lab:distance", "cannot be imported"),
    ],
)
def test_an_unknown_discrepancy_is_told_when_the_attack_is_made(name, sentence):
    with pytest.raises(UnknownName, match=sentence):
        build("attack", {"name": "inverting-gradients", "discrepancy": name})
