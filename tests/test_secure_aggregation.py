"""Secure aggregation: masks that cancel, clients that drop out, what a vector says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import exhume
from exhume import Mechanism, ThreatModel
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.secure_aggregation import (
    SecureAggregation,
    encode,
    mask_of,
    masked_vector,
    threshold,
    unmasked_sum,
)
from exhume.errors import Inconsistent, InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.aggregate import Aggregate
from exhume.problem.observation import Candidate
from exhume.problem.privacy import Guarantee
from exhume.problem.tree import flatten, norm
from toys import GRAY, make_world, reveal, smooth_mlp

LABELS = (2, 0, 1, 4, 3, 0)


def world(*defenses, labels=LABELS, **options):
    return make_world(
        GRAY,
        labels=labels,
        model=smooth_mlp(GRAY),
        defenses=defenses,
        dtype=torch.float64,
        **options,
    )


def client_gradients(w, clients: int) -> list[dict]:
    x, y = w.batch.inputs.chunk(clients), w.batch.targets.chunk(clients)
    return [w.task.gradient(a, b) for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize(
    ("clients", "dropped", "bits"),
    [(1, 0, 32), (2, 0, 32), (3, 1, 32), (6, 0, 20), (6, 2, 40), (3, 0, 8)],
)
def test_release_is_the_mean_of_the_survivors_to_the_rounding(clients, dropped, bits):
    w = world(SecureAggregation(clients=clients, dropped=dropped, fraction_bits=bits))
    released = w.observe(key=3).values
    alive = client_gradients(w, clients)[: clients - dropped]
    errors = [
        released[n] - torch.stack([g[n] for g in alive]).mean(0) for n in released
    ]
    worst = max(float(e.abs().max()) for e in errors)
    assert worst <= 2.0 ** (-bits - 1) * (1 + 1e-6)
    if bits <= 20:
        assert worst > 2.0 ** (-bits - 1) * 0.3


def test_masks_cancel_whoever_drops_out():
    clients, source = 5, torch.Generator().manual_seed(0)
    values = [torch.randn(300, generator=source).double() for _ in range(clients)]
    sent = {
        i: masked_vector(encode(v, 30, clients), i, clients, key=7)
        for i, v in enumerate(values)
    }
    for gone in ((), (0,), (4,), (1, 3)):
        alive = {i: y for i, y in sent.items() if i not in gone}
        total = unmasked_sum(alive, clients, key=7).view(np.int64) * 2.0**-30
        plain = sum(v for i, v in enumerate(values) if i not in gone)
        assert np.abs(total - plain.numpy()).max() <= clients * 2.0**-31
    with pytest.raises(InvalidInput, match="only 2 of 5 clients are left"):
        unmasked_sum({i: sent[i] for i in (0, 1)}, clients, key=7)
    wrong = unmasked_sum(sent, clients, key=8).view(np.int64) * 2.0**-30
    assert np.abs(wrong).max() > 1e6


def test_one_masked_vector_is_uniform_whatever_it_hides():
    count, rows = 20_000, []
    updates = torch.zeros(count), 1e3 * torch.linspace(-1, 1, count)
    for key, update in enumerate(updates):
        hidden = masked_vector(encode(update, 32, 3), 1, 3, key=key)
        by_byte = hidden.view(np.uint8).reshape(count, 8).T
        rows += [np.bincount(byte, minlength=256) for byte in by_byte]
    counts = np.array(rows)
    statistic = ((counts - count / 256) ** 2 / (count / 256)).sum(axis=1)
    assert statistic.max() < chi2.ppf(1 - 1e-6, 255)
    both = counts.reshape(2, 8, 256)
    same_law = ((both[0] - both[1]) ** 2 / (both[0] + both[1])).sum(axis=1)
    assert same_law.max() < chi2.ppf(1 - 1e-6, 255)
    # The plain encodings would not pass.
    plain = encode(updates[1], 32, 3).view(np.uint8).reshape(count, 8)[:, 7]
    assert np.bincount(plain, minlength=256).max() > count / 4


def test_the_same_key_masks_every_update_with_the_same_pad():
    a, b = (torch.full((50,), v).double() for v in (0.25, -3.0))
    first, second = (masked_vector(encode(v, 16, 2), 0, 2, key=1) for v in (a, b))
    assert set((first - second).view(np.int64)) == {int(3.25 * 2**16)}
    assert len(set(first)) == 50
    assert not np.array_equal(mask_of(1, 50), mask_of(2, 50))
    assert threshold(1) == 1
    assert [threshold(k) for k in (2, 3, 4, 10)] == [2, 2, 3, 6]


def test_values_too_large_for_fixed_point_are_refused():
    big = torch.tensor([0.0, 2.0**30])
    assert encode(big, 32, 1).view(np.int64)[1] == 2**62
    with pytest.raises(InvalidInput, match="use fewer fraction bits"):
        encode(big, 32, 2)
    with pytest.raises(InvalidInput, match="nan"):
        encode(torch.tensor([float("nan")]), 8, 2)


def test_batches_and_updates_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match="use a multiple of 4"):
        world(SecureAggregation(clients=4)).observe()
    defense = SecureAggregation(clients=2)
    w = world(defense)
    plan = defense.calibrate(w.task, None, 0)
    good = client_gradients(w, 2)
    with pytest.raises(Inconsistent, match="client 1"):
        defense.combine([good[0], {"x": torch.ones(1)}], plan, 0)
    counted = plan.beside({"steps": torch.tensor(3)})
    with pytest.raises(InvalidInput, match="steps holds integers"):
        defense.combine([{**g, "steps": torch.tensor(3)} for g in good], counted, 0)


def test_dropped_clients_leave_no_trace():
    w = world(SecureAggregation(clients=3, dropped=1))
    changed = w.batch.inputs.clone()
    changed[4:] = 0.5
    other = replace(w, batch=replace(w.batch, inputs=changed))
    a, b = w.observe(1).values, other.observe(1).values
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_the_attacker_faces_the_aggregate_with_the_labels_of_each_client():
    w = world(SecureAggregation(clients=3, dropped=1))
    problem = reveal(w)
    assert isinstance(problem.observation_model, Aggregate)
    assert problem.targets.tolist() == [0, 2, 1, 4, 0, 3]
    for order, fits in (((1, 0, 2, 3, 5, 4), True), ((0, 1, 2, 3, 4, 5), False)):
        candidate = Candidate(w.batch.inputs[list(order)], problem.targets)
        exact = problem.observation_model.forward(problem.task, candidate)
        error = (flatten(dict(exact)) - flatten(problem.observed)).abs().max()
        assert (float(error) < 1e-9) is fits


def test_clients_clip_and_add_noise_on_their_own():
    stack = (
        Clipping(max_norm=0.1),
        GaussianNoise(std=0.2),
        SecureAggregation(clients=6, dropped=2),
    )
    w = world(*stack)
    plans = w.mechanism.calibrate(w.task, None, 0)
    induced = w.mechanism.induced(w.task, plans)
    assert float(induced.law.variance["1.bias"]) == pytest.approx(0.04 / 4)
    mean = induced.model.forward(
        induced.task, Candidate(w.batch.inputs, w.batch.targets)
    )
    assert float(norm(mean)) <= 0.1 + 1e-12
    draws = [
        flatten(w.mechanism.sample(w.task, w.batch, key, plans=plans).values)
        for key in range(40)
    ]
    residual = torch.stack(draws) - flatten(induced.law.mean(mean))
    z = residual / 0.1
    count = z.numel()
    assert float(z.mean().abs()) < 5 / count**0.5
    assert abs(float(z.square().mean()) - 1) < 5 * (2 / count) ** 0.5


def test_accounting_adds_up_the_noise_of_the_survivors():
    defense = SecureAggregation(clients=9)
    w = world(labels=(0,))
    plan = defense.calibrate(w.task, None, 0)
    one = Guarantee(plan.shapes).clipped(plan.shapes, 2.0, "client")
    noisy = one.plus_noise(dict.fromkeys(plan.shapes, 4.0))
    assert noisy.multiplier == pytest.approx(1.0)
    assert defense.account(noisy, plan).multiplier == pytest.approx(3.0)
    laplace = one.plus_noise(dict.fromkeys(plan.shapes, 4.0), "laplace")
    assert defense.account(laplace, plan).multiplier == laplace.multiplier


def test_weights_are_the_mean_over_the_survivors():
    assert SecureAggregation(clients=3).weights() == pytest.approx((1 / 3,) * 3)
    weights = SecureAggregation(clients=5, dropped=2).weights()
    assert sorted(weights) == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])


def test_two_clients_with_one_example_each_are_a_batch_of_two():
    w = make_world(
        GRAY,
        labels=(3, 1),
        model=smooth_mlp(GRAY, width=40),
        defenses=(SecureAggregation(clients=2),),
    )
    problem = reveal(w)
    guess = exhume.attack("gauss-newton")(problem, key=0)
    assert min(exhume.score(guess, w.batch).values["psnr"]) > 60
    alone = replace(w, mechanism=Mechanism(Gradient()))
    plain = ThreatModel("labels-known").reveal(alone, alone.observe())
    for n, t in plain.observed.items():
        torch.testing.assert_close(problem.observed[n], t, rtol=1e-4, atol=1e-7)
