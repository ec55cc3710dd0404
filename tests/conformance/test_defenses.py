"""Conformance of defenses: every registered one keeps its word.

One that the client completes from its private batch (``personalise``) is held to its
word by ``test_personal_defenses.py``.
"""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn

from exhume import Mechanism, Task, config, registry
from exhume.defenses.clipping import ClipNorm
from exhume.errors import Inconsistent, InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.defense import Defense, Stage
from exhume.problem.observation import Candidate
from exhume.problem.privacy import Guarantee
from exhume.problem.tree import flatten, norm, scale, unflatten
from exhume.report.page import citations

from .closeness import assert_close_to_scale
from .rows import every
from .tiny import (
    BATCH,
    PUBLIC,
    TASK,
    TREE,
    personal,
    same,
    small_task,
    storage,
    tree_like,
)

RELEASES = 10_000

every_row = every("defense")
every_defense = every("defense", lambda d: not personal(d))
every_partial_defense = every(
    "defense", lambda d: not personal(d) and "only" in {f.name for f in fields(d)}
)


def on_updates(defense: Defense) -> bool:
    """Say whether it changes a finished update, or the model and the examples alone."""
    return type(defense)._release is not Defense._release


@every_row
def test_declares_stage_citation_and_options(defense):
    assert isinstance(defense.stage, Stage)
    cited = citations([("defense", config.describe(defense))])
    assert cited == "" or cited.startswith("@")
    assert cited.count("{") == cited.count("}")
    described = config.describe(defense)
    assert config.build("defense", described) == defense
    assert described["name"] == registry.registered_name(type(defense))


# --- the release ---------------------------------------------------------------------


@every_defense
def test_empirical_moments_equal_declared_law(defense):
    mechanism = Mechanism(Gradient(), [defense])
    plans = mechanism.calibrate(TASK, PUBLIC, key=3)
    law = mechanism.law(plans)
    count = RELEASES if mechanism.defenses[0].adds_noise else 3
    if law.covariance is not None:  # slower to draw, and fewer do
        count = RELEASES // 5
    samples = torch.stack(
        [flatten(mechanism.release(TREE, plans, key)) for key in range(count)]
    ).numpy()
    check_moments(samples, law, TREE)


@every_row
def test_a_step_of_training_draws_masks_anew_and_nothing_else(defense):
    plan = defense.calibrate(TASK, PUBLIC, key=3)
    moved = defense.redraw(plan, 5)
    if moved is plan:
        return
    for field in ("defense", "shapes", "covers", "numbers"):
        assert getattr(moved, field) == getattr(plan, field)
    assert not same(moved.arrays, plan.arrays)
    assert same(defense.redraw(plan, 5).arrays, moved.arrays)
    fresh = defense.calibrate(TASK, PUBLIC, key=5)
    assert same(fresh.arrays, moved.arrays)
    idle = defense.idle()
    assert idle is None or not idle.redraw(idle.calibrate(TASK, None, 3), 5).arrays


@every_defense
def test_accounting_is_told_no_more_than_is_true(defense):
    plan = defense.calibrate(TASK, PUBLIC, key=3)
    clipping = ClipNorm(1.0, tuple(plan.shapes))
    before = Guarantee(plan.shapes).clipped(plan.shapes, 1.0, "client")
    after = defense.account(before, plan)
    variance = Mechanism(Gradient(), [defense]).law((plan,)).variance
    for tensor, declared in after.variance.items():
        assert float(declared.min()) <= float(variance[tensor].min()) * (1 + 1e-9)
    if (
        not on_updates(defense)
        or defense.adds_noise
        or not after.bounded
        or after.broken
    ):
        return
    most = math.hypot(*(one.norm for one in after.bounded))
    for key in range(30):
        update = clipping(scale(10.0 ** (key % 3), tree_like(TASK, key)))
        assert float(norm(defense.apply(update, plan, key))) <= most * (1 + 1e-9)


def check_moments(samples: np.ndarray, law, tree: dict) -> None:
    """Compare releases, shape [n, P], with a law on its kept coordinates.

    Only the mean of a law that is not Gaussian is meant.
    """
    count = len(samples)
    ones = {n: torch.ones_like(t) for n, t in tree.items()}
    kept = flatten(law.keep(ones)).numpy() > 0
    zero = torch.zeros((), dtype=torch.float64)
    variance = flatten(
        {n: law.variance.get(n, zero).expand(t.shape) for n, t in tree.items()}
    ).numpy()[kept]
    mean = flatten(law.mean(tree)).numpy()[kept]
    empirical = samples[:, kept]
    error = np.abs(empirical.mean(0) - mean)
    if law.not_gaussian is not None:
        assert (error <= 5 * np.sqrt(empirical.var(0) / count) + 1e-12).all()
        return
    assert (error <= 5 * np.sqrt(variance / count) + 1e-12).all()
    covariance = np.cov(empirical.T)
    assert (np.diag(covariance)[variance == 0] <= 1e-24).all()
    noisy = variance > 0
    if not noisy.any():
        return
    ratio = np.diag(covariance)[noisy] / variance[noisy] * (count - 1)
    # The variance of a sample variance is (kurtosis − 1) / n: 5/n for Laplace noise.
    share = {"gaussian": 1, "laplace": 2 / 5}[law.family]
    low, high = chi2.ppf([1e-7, 1 - 1e-7], share * (count - 1)) / share
    assert ((low <= ratio) & (ratio <= high)).all()
    if law.covariance is not None:
        white = [
            flatten(law.whitener(tree)(unflatten(torch.from_numpy(row), tree)))
            for row in samples - flatten(law.mean(tree)).numpy()
        ]
        covariance, variance = np.cov(torch.stack(white).T), np.ones(len(white[0]))
    sigma = np.sqrt(variance[noisy])
    correlation = covariance[np.ix_(noisy, noisy)] / np.outer(sigma, sigma)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() <= 5.5 / np.sqrt(count)


@every_defense
def test_acts_at_its_strength_and_is_identity_without(defense):
    acting = defense
    moved = acting.apply(TREE, acting.calibrate(TASK, PUBLIC, 0), 1)
    assert same(moved, TREE) is not on_updates(defense)
    before, after = (
        Mechanism(Gradient(), stack).sample(TASK, BATCH, 1, PUBLIC).values
        for stack in ([], [acting])
    )
    assert not same(before, after)
    if defense.idle() is None:
        return
    idle = defense.idle()
    plan = idle.calibrate(TASK, PUBLIC, 0)
    assert same(idle.apply(TREE, plan, 1), TREE)
    idled = Mechanism(Gradient(), [idle]).sample(TASK, BATCH, 1, PUBLIC).values
    for n in before:
        torch.testing.assert_close(idled[n], before[n], rtol=1e-12, atol=1e-14)
    assert not idle.adds_noise
    assert idle.preserves_zeros
    law = Mechanism(Gradient(), [idle]).law((plan,))
    assert same(law.mean(TREE), TREE)
    assert not law.noisy
    assert law.irregular is None


@every_defense
def test_a_release_of_private_data_follows_the_induced_task_model_and_law(defense):
    mechanism = Mechanism(Gradient(), [defense])
    plans = mechanism.calibrate(TASK, PUBLIC, key=3)
    induced = mechanism.induced(TASK, plans)
    assert list(induced.task.parameters()) == list(TASK.parameters())
    candidate = Candidate(BATCH.inputs, BATCH.targets)
    expected = induced.law.mean(induced.model.forward(induced.task, candidate))
    count = 150 if mechanism.defenses[0].adds_noise else 1
    draws = torch.stack(
        [
            flatten(mechanism.sample(TASK, BATCH, key, plans=plans).values)
            for key in range(count)
        ]
    )
    error = (draws.mean(0) - flatten(dict(expected))).abs()
    spread = draws.std(0) if count > 1 else torch.zeros_like(error)
    assert bool((error <= 5 * spread / count**0.5 + 1e-12).all())


@every_defense
def test_both_routes_of_the_induced_model_agree_and_differentiate(defense):
    mechanism = Mechanism(Gradient(), [defense])
    induced = mechanism.induced(TASK, mechanism.calibrate(TASK, PUBLIC, key=3))
    task, model = induced.task, induced.model
    inputs = BATCH.inputs.clone().requires_grad_()
    one = Candidate(inputs, BATCH.targets)
    by_autograd = flatten(model.forward(task, one))

    def by_func(x):
        return flatten(model.forward_func(task, Candidate(x, BATCH.targets)))

    torch.testing.assert_close(by_autograd, by_func(BATCH.inputs))
    weights = torch.linspace(-1, 1, len(by_autograd)).double()
    (back,) = torch.autograd.grad(by_autograd @ weights, inputs, create_graph=True)
    jacobian = torch.func.vmap(
        lambda t: torch.func.jvp(by_func, (BATCH.inputs,), (t,))[1]
    )(torch.eye(8).double().reshape(8, 2, 4))
    torch.testing.assert_close(back.reshape(-1), jacobian @ weights)
    assert bool(torch.autograd.grad(back.square().sum(), inputs)[0].isfinite().all())


@every_defense
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_dtype_shape_names_and_input(defense, dtype):
    tree = tree_like(TASK, dtype=dtype)
    before = {n: t.clone() for n, t in tree.items()}
    released = defense.apply(tree, defense.calibrate(TASK, PUBLIC, 0), 1)
    assert same(tree, before)
    assert list(released) == list(tree)
    assert all(released[n].dtype == dtype for n in tree)
    assert all(released[n].shape == tree[n].shape for n in tree)
    assert not storage(released) & storage(tree)


@every_partial_defense
def test_leaves_uncovered_tensors_alone(defense):
    defense = replace(defense, only=("2.*",))
    plan = defense.calibrate(TASK, PUBLIC, 0)
    released = defense.apply(TREE, plan, 1)
    assert plan.covers == ("2.weight", "2.bias")
    assert plan.in_clear == ("0.weight", "0.bias")
    assert all(torch.equal(released[n], TREE[n]) for n in plan.in_clear)
    assert not storage(released) & storage(TREE)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    assert not law.noisy_on(plan.in_clear)
    assert all(torch.equal(law.mean(TREE)[n], TREE[n]) for n in plan.in_clear)
    changed = any(not torch.equal(released[n], TREE[n]) for n in plan.covers)
    assert changed is on_updates(defense)
    shown = Mechanism(Gradient(), [defense]).sample(TASK, BATCH, 1, plans=(plan,))
    exact = TASK.gradient(BATCH.inputs, BATCH.targets)
    for n in plan.in_clear:
        torch.testing.assert_close(shown.values[n], exact[n])
    assert any(not torch.allclose(shown.values[n], exact[n]) for n in plan.covers)


@every_partial_defense
def test_covered_tensors_do_not_feel_the_others(defense):
    defense = replace(defense, only=("2.*",))
    plan = defense.calibrate(TASK, PUBLIC, 0)
    other = {n: t * 7 if n in plan.in_clear else t for n, t in TREE.items()}
    a, b = defense.apply(TREE, plan, 1), defense.apply(other, plan, 1)
    assert all(torch.equal(a[n], b[n]) for n in plan.covers)


@every_defense
def test_equal_keys_give_equal_bits(defense):
    plan = defense.calibrate(TASK, PUBLIC, 0)
    again = defense.calibrate(TASK, PUBLIC, 0)
    assert same(dict(plan.arrays), dict(again.arrays))
    first = defense.apply(TREE, plan, 1)
    assert same(first, defense.apply(TREE, again, 1))
    assert same(first, defense.apply(TREE, plan, 2)) is not defense.adds_noise
    mechanism = Mechanism(Gradient(), [defense])
    a, b = (mechanism.sample(TASK, BATCH, 4, PUBLIC).values for _ in range(2))
    assert same(a, b)


@every_defense
def test_order_of_tensors_does_not_matter(defense):
    plan = defense.calibrate(TASK, PUBLIC, 0)
    backwards = dict(reversed(TREE.items()))
    a, b = defense.apply(TREE, plan, 1), defense.apply(backwards, plan, 1)
    assert all(torch.equal(a[n], b[n]) for n in TREE)


@every_defense
def test_s18_global_randomness_is_untouched(defense):
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    plan = defense.calibrate(TASK, PUBLIC, 0)
    defense.apply(TREE, plan, 1)
    Mechanism(Gradient(), [defense]).law((plan,)).mean(TREE)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1][1])  # noqa: NPY002
    assert random.getstate() == states[2]


@every_defense
def test_pickles_with_plan_and_law(defense):
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    copies = pickle.loads(pickle.dumps((defense, plan, law)))
    assert copies[0] == defense
    assert same(copies[0].apply(TREE, copies[1], 1), defense.apply(TREE, plan, 1))
    assert same(copies[2].mean(TREE), law.mean(TREE))


@every_defense
def test_plan_for_another_update_is_refused(defense):
    plan = defense.calibrate(small_task(width=5), PUBLIC, 0)
    with pytest.raises(Inconsistent, match=r"0\.weight.*\[3, 4\].*\[5, 4\]"):
        defense.apply(TREE, plan, 1)
    plan = defense.calibrate(TASK, PUBLIC, 0)
    for wrong, message in (
        ({n: t for n, t in TREE.items() if n != "0.bias"}, "'0.bias' is missing"),
        ({**TREE, "head": torch.zeros(2)}, "'head'"),
        ({}, "missing"),
        ({**TREE, "0.bias": torch.ones(3, dtype=torch.int64)}, "integer.*0.bias"),
    ):
        with pytest.raises(Inconsistent, match=message):
            defense.apply(wrong, plan, 1)
    with pytest.raises(Inconsistent, match="made by 'something-else'"):
        defense.apply(TREE, replace(plan, defense="something-else"), 1)


@every_partial_defense
def test_pattern_without_tensor_is_refused(defense):
    with pytest.raises(InvalidInput, match=r"'head\.\*' matches no tensor"):
        replace(defense, only=("head.*",)).calibrate(TASK, PUBLIC, 0)
    with pytest.raises(InvalidInput, match="nothing is defended"):
        replace(defense, only=()).calibrate(TASK, PUBLIC, 0)


# --- silent errors of other tools ----------------------------------------------------


@every_defense
def test_s25_odd_symmetry_in_law(defense):
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    negative = scale(-1, TREE)
    assert_close_to_scale(law.mean(negative), scale(-1, law.mean(TREE)), 1e-13)
    if not defense.adds_noise:
        plus, minus = (defense.apply(t, plan, 1) for t in (TREE, negative))
        assert_close_to_scale(plus, scale(-1, minus), 1e-13)


@every_defense
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_s24_law_holds_at_every_scale(defense, factor):
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    tree = scale(factor / norm(TREE), TREE)
    released, mean = defense.apply(tree, plan, 1), law.mean(tree)
    if not defense.adds_noise:
        assert same(released, mean)
        return
    if law.not_gaussian is not None:
        return
    z = (flatten(released) - flatten(mean)) * flatten(law.precision(tree)).sqrt()
    assert float(z.abs().max()) < 5


@every_defense
def test_s21_declared_noise_is_added_on_every_covered_coordinate(defense):
    plan = defense.calibrate(TASK, PUBLIC, 0)
    law = Mechanism(Gradient(), [defense]).law((plan,))
    if law.not_gaussian is not None:
        return
    assert law.noise_covers(plan.covers) == defense.adds_noise
    first, second = (defense.apply(TREE, plan, key) for key in (1, 2))
    for n in plan.covers:
        moved = first[n] != second[n]
        assert bool(moved.all() if defense.adds_noise else not moved.any())


@every_defense
def test_s22_buffers_and_counters_pass_in_clear(defense):
    net = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)
    ).double()
    task = Task(net)
    buffers = dict(net.named_buffers())
    plan = defense.calibrate(task, PUBLIC, 0).beside(buffers)
    update = {**tree_like(task), **buffers}
    released = defense.apply(update, plan, 1)
    assert plan.in_clear == tuple(buffers)
    assert "1.num_batches_tracked" in plan.in_clear
    assert all(torch.equal(released[n], buffers[n]) for n in buffers)
    assert released["1.num_batches_tracked"].dtype == torch.int64
    assert float(released["1.running_var"].min()) > 0
    untouched = all(torch.equal(released[n], update[n]) for n in plan.covers)
    assert untouched is not on_updates(defense)
    with pytest.raises(Inconsistent, match=r"running_var"):
        defense.apply(update, defense.calibrate(task, PUBLIC, 0), 1)
    with pytest.raises(Inconsistent, match="already"):
        plan.beside(buffers)
