"""Metrics: against independent references, per example, after optimal matching."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from exhume import Batch, EventSpec, NotApplicable, score
from exhume.config import build
from exhume.errors import InvalidInput, UnknownName
from exhume.keys import generator
from exhume.metrics.label_accuracy import label_agreement
from exhume.metrics.mse import mean_squared_errors
from exhume.metrics.ncc import pearson_correlations
from exhume.metrics.psnr import CAP_DB, peak_signal_to_noise_ratios
from exhume.metrics.score import align_labels, match
from exhume.metrics.ssim import structural_similarities
from exhume.problem.event import squared_distances
from exhume.problem.reconstruction import Cost, Outcome, Reconstruction
from exhume.registry import find, names

IMAGE = EventSpec.image(3, 16, 16)
GRAY = EventSpec.image(1, 25, 25)
VECTOR = EventSpec.vector(7)
BOUNDED = EventSpec.vector(7, -1.0, 3.0)


def draw(spec, count=4, key=0, dtype=torch.float32):
    g = generator(key, "test-metrics")
    return torch.rand((count, *spec.shape), generator=g, dtype=dtype)


def batch_of(spec, count=4):
    return Batch(draw(spec, count), torch.arange(count), spec)


def guessed(inputs, targets):
    return Reconstruction(inputs, targets, None, Outcome.CONVERGED, Cost(0, 0, 0))


def noisy(inputs, std=0.1, key=1):
    g = generator(key, "test-metrics-noise")
    noise = torch.empty_like(inputs).normal_(0, std, generator=g)
    return (inputs + noise).clamp(0, 1)


@pytest.mark.parametrize("name", names("metric"))
def test_metrics_are_symmetric(name):
    metric, scored = build("metric", name), 0
    for spec in (
        IMAGE,
        *(find("event", kind).examples()[0] for kind in names("event")),
    ):
        truth, classes = draw(spec), torch.arange(4)
        pair = {"inputs": (noisy(truth), truth), "targets": (classes.flip(0), classes)}
        guess, true = pair[metric.compares]
        found, turned = metric(guess, true, spec), metric(true, guess, spec)
        if not isinstance(found, NotApplicable):
            torch.testing.assert_close(found, turned)
            scored += 1
    assert scored, "fits no kind of example"


# Independent references.


def test_mse_of_a_hand_computed_pair():
    guess = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    truth = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert mean_squared_errors(guess, truth).tolist() == [2.0, 12.5]


def test_squared_distances_of_a_hand_computed_pair():
    guess, truth = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert squared_distances(guess, truth).tolist() == [[25.0, 1.0]]


def test_squared_distances_lose_no_digit_at_an_exact_guess():
    truth = 1e4 + draw(EventSpec.vector(300), count=30, dtype=torch.float64)
    found = squared_distances(truth, truth)
    assert float(found.diagonal().abs().max()) == 0
    assert float(squared_distances(truth + 1e-9, truth).diagonal().min()) > 0


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_psnr_equals_scikit_image(peak):
    truth = draw(GRAY, dtype=torch.float64)
    guess = noisy(truth)
    found = peak_signal_to_noise_ratios(guess * peak, truth * peak, peak)
    for i, value in enumerate(found.tolist()):
        expected = peak_signal_noise_ratio(
            truth[i].numpy(), guess[i].numpy(), data_range=1.0
        )
        assert value == pytest.approx(expected, rel=1e-12)


def test_psnr_of_an_exact_copy_is_the_cap_and_nothing_real_is_cut():
    truth = draw(GRAY, dtype=torch.float64)
    assert peak_signal_to_noise_ratios(truth, truth, 1.0).tolist() == [CAP_DB] * 4
    near = peak_signal_to_noise_ratios(truth + 1e-14, truth, 1.0)
    assert bool((near < CAP_DB).all())
    assert float(near.min()) == pytest.approx(280, abs=1)


def ssim_by_hand(a, b, peak, sigma):
    """Eq. 13 of Wang et al. with Gaussian weights cut at 3.5 σ, valid region only."""

    def local(z):
        return gaussian_filter(z, sigma, truncate=3.5)

    pad = int(3.5 * sigma + 0.5)
    values = []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        mx, my = local(x), local(y)
        vx, vy = local(x * x) - mx**2, local(y * y) - my**2
        cov = local(x * y) - mx * my
        c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
        top = (2 * mx * my + c1) * (2 * cov + c2)
        full = top / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(full[pad:-pad, pad:-pad].mean())
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("side", "sigma"), [(25, 1.5), (11, 1.5), (10, 1.2), (8, 0.9), (3, 0.3)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_the_published_formula(side, sigma, channels):
    spec = EventSpec.image(channels, side, side)
    truth = draw(spec, dtype=torch.float64)
    guess = noisy(truth)
    found = structural_similarities(guess * 2, truth * 2, peak=2.0)
    for i, value in enumerate(found.tolist()):
        expected = ssim_by_hand(guess[i] * 2, truth[i] * 2, 2.0, sigma)
        assert value == pytest.approx(expected, rel=1e-9)
        assert -1 <= value <= 1


def test_label_agreement_takes_soft_and_hard_labels():
    soft = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    hard = torch.tensor([1, 1, 1])
    assert label_agreement(soft, hard).tolist() == [1.0, 0.0, 1.0]
    assert label_agreement(hard, soft).tolist() == [1.0, 0.0, 1.0]
    assert label_agreement(soft, soft).tolist() == [1.0] * 3


@given(
    labels=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=7),
)
@example(labels=[(7, 3), (3, 7), (3, 3)])
@settings(max_examples=60, deadline=None)
def test_labels_count_once_and_in_any_order(labels):
    guess = torch.tensor([g for g, _ in labels], dtype=torch.int64)
    truth = torch.tensor([t for _, t in labels], dtype=torch.int64)
    aligned = align_labels(guess, truth)
    assert sorted(aligned.tolist()) == sorted(guess.tolist())
    overlap = (Counter(guess.tolist()) & Counter(truth.tolist())).total()
    assert int((aligned == truth).sum()) == overlap
    assert bool((aligned == truth)[guess == truth].all())


def test_right_labels_score_one_though_every_picture_is_wrong():
    batch = batch_of(IMAGE)
    found = score(guessed(1 - batch.inputs, batch.targets.sort().values), batch)
    assert found.label_accuracy == (1.0,) * 4


def test_correlations_are_those_of_numpy_and_see_no_brightness():
    truth = draw(IMAGE, dtype=torch.float64)
    guess = noisy(truth)
    expected = [
        np.corrcoef(a.flatten(), b.flatten())[0, 1]
        for a, b in zip(guess.numpy(), truth.numpy(), strict=True)
    ]
    assert pearson_correlations(guess, truth).tolist() == pytest.approx(expected)
    moved = pearson_correlations(3 * guess + 7, truth)
    assert moved.tolist() == pytest.approx(expected)
    assert pearson_correlations(-truth, truth).tolist() == pytest.approx([-1] * 4)
    flat = torch.full_like(truth, 0.3)
    assert pearson_correlations(flat, truth).tolist() == [0.0] * 4


# A metric that does not fit says so (a score never lands in a foreign field).


def test_metrics_that_do_not_fit_are_not_applicable():
    unbounded = score(guessed(draw(VECTOR), torch.arange(4)), batch_of(VECTOR))
    assert {"psnr", "ssim"} <= set(unbounded.not_applicable)
    assert {"mse", "ncc", "label-accuracy"} <= set(unbounded.values)
    every = {*unbounded.not_applicable, *unbounded.values}
    assert every == set(names("metric"))
    bounded = score(guessed(draw(BOUNDED), torch.arange(4)), batch_of(BOUNDED))
    assert "ssim" in bounded.not_applicable
    assert "psnr" in bounded.values
    flat = EventSpec.image(3, 2, 40)
    assert (
        "ssim"
        in score(guessed(draw(flat), torch.arange(4)), batch_of(flat)).not_applicable
    )
    with pytest.raises(InvalidInput, match="known range"):
        _ = unbounded.psnr
    with pytest.raises(UnknownName, match="mean-squared"):
        unbounded["mean-squared"]


@pytest.mark.parametrize(
    "targets", [torch.ones(4), torch.ones(4, 1), torch.tensor([[2.0, -1.0]] * 4)]
)
def test_real_targets_have_no_label_accuracy(targets):
    batch = Batch(draw(VECTOR), targets, VECTOR)
    found = score(guessed(batch.inputs, targets), batch)
    assert "no classes" in found.not_applicable["label-accuracy"]


# Matching.


def brute_force(cost):
    """Least total cost over all injections of the smaller side into the larger."""
    cost = cost if cost.shape[0] >= cost.shape[1] else cost.T
    rows, columns = cost.shape
    return min(
        sum(cost[r, c] for c, r in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )


@given(guesses=st.integers(1, 5), truths=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_the_assignment_is_optimal(guesses, truths, seed):
    g = generator(seed, "matching")
    guess = torch.rand((guesses, 2), generator=g, dtype=torch.float64)
    truth = torch.rand((truths, 2), generator=g, dtype=torch.float64)
    index = match(guess, truth, EventSpec.vector(guess.shape[1]))
    assert index.shape == (truths,)
    assert index.dtype == torch.int64
    used = index[index >= 0].tolist()
    assert len(used) == min(guesses, truths) == len(set(used))
    cost = (guess[:, None] - truth[None]).square().sum(dim=2).numpy()
    total = sum(cost[i, j] for j, i in enumerate(index.tolist()) if i >= 0)
    assert total == pytest.approx(brute_force(cost), rel=1e-12)


@given(order=st.permutations(range(5)))
@settings(max_examples=12, deadline=None)
def test_scores_do_not_depend_on_the_order_of_the_estimates(order):
    batch = batch_of(IMAGE, 5)
    guess = noisy(batch.inputs, 0.05)
    straight = score(guessed(guess, batch.targets), batch)
    order = list(order)
    shuffled = score(guessed(guess[order], batch.targets[order]), batch)
    assert shuffled.values == straight.values
    assert [order[i] for i in shuffled.assignment] == [*straight.assignment]
    assert torch.equal(shuffled.inputs, straight.inputs)
    assert torch.equal(shuffled.targets, straight.targets)


def test_missing_estimates_leave_their_truths_without_scores():
    batch = batch_of(IMAGE)
    found = score(guessed(batch.inputs[[2, 0]], batch.targets[[2, 0]]), batch)
    assert found.assignment == (1, None, 0, None)
    assert found.mse == (0.0, None, 0.0, None)
    assert found.ssim[1] is found.psnr[3] is found.label_accuracy[1] is None
    assert bool(found.inputs[1].isnan().all())
    assert torch.equal(found.inputs[2], batch.inputs[2])
    assert found.targets.tolist() == [0, -1, 2, -1]
    assert found.summary()["mse"] == {"median": 0.0, "min": 0.0, "max": 0.0}


def test_surplus_estimates_are_ignored():
    batch = batch_of(IMAGE, 2)
    guess = torch.cat([noisy(batch.inputs, 0.5), batch.inputs])
    found = score(guessed(guess, torch.tensor([9, 9, 0, 1])), batch)
    assert found.assignment == (2, 3)
    assert found.label_accuracy == (1.0, 1.0)


def test_no_estimate_at_all():
    batch = batch_of(IMAGE, 2)
    found = score(guessed(batch.inputs[:0], batch.targets[:0]), batch)
    assert found.assignment == (None, None)
    assert found.values == {}
    assert set(found.not_applicable) == set(names("metric"))
    assert found.summary() == {}


@pytest.mark.parametrize(
    ("guess", "message"),
    [
        (torch.zeros(4, 1, 16, 16), "must agree"),
        (torch.full((4, 3, 16, 16), torch.nan), "NaN"),
        (torch.full((4, 3, 16, 16), torch.inf), "infinity"),
    ],
)
def test_impossible_estimates_are_refused(guess, message):
    with pytest.raises(InvalidInput, match=message):
        score(guessed(guess, torch.arange(4)), batch_of(IMAGE))


# One exact image of a batch.


def test_one_exact_image_leaves_the_others_and_every_summary_finite():
    batch = batch_of(IMAGE)
    guess = noisy(batch.inputs)
    without = score(guessed(guess, batch.targets), batch)
    guess[0] = batch.inputs[0]
    found = score(guessed(guess, batch.targets), batch)
    assert found.psnr[0] == CAP_DB
    assert found.psnr[1:] == without.psnr[1:]
    assert all(v is not None and math.isfinite(v) for v in found.psnr)
    for row in found.summary().values():
        assert all(math.isfinite(value) for value in row.values())
    assert found.summary()["psnr"]["median"] < 40
    assert found.summary()["psnr"]["max"] == CAP_DB


def test_summary_names_its_reductions():
    batch = Batch(torch.zeros(3, 7), torch.arange(3), VECTOR)
    guess = torch.tensor([0.0, 1.0, 3.0])[:, None].expand(3, 7)
    found = score(guessed(guess, batch.targets), batch)
    assert found.mse == (0.0, 1.0, 9.0)
    assert found.summary()["mse"] == {"median": 1.0, "min": 0.0, "max": 9.0}


def test_scoring_changes_nothing():
    batch = batch_of(IMAGE)
    guess = noisy(batch.inputs).requires_grad_()
    state, before = torch.get_rng_state(), guess.detach().clone()
    found = score(guessed(guess, batch.targets), batch)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(guess.detach(), before)
    assert not found.inputs.requires_grad


def test_a_double_precision_guess_of_a_single_precision_truth():
    batch = batch_of(IMAGE)
    found = score(guessed(batch.inputs.double() + 1e-9, batch.targets), batch)
    assert all(v == pytest.approx(180, abs=1) for v in found.psnr)
