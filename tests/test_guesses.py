"""Guesses that read no update, and the placebo: the same attack on another release."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import exhume
from exhume.attacks.public_centres import shrunk_class_mean
from exhume.errors import Unsuited
from exhume.metrics.score import score
from exhume.problem.knowledge import UNKNOWN
from exhume.runs.records import TrialSpec
from exhume.trials.placebo import decoys
from exhume.trials.trial import run_trial
from toys import GRAY, VECTOR, make_world, reveal

DIGITS = TrialSpec(
    data={"name": "digits"},
    model={"name": "mlp", "hidden": [16]},
    prior={"name": "gaussian"},
    attack={"name": "analytic-linear"},
)


def test_centres_read_neither_the_update_nor_the_model():
    p = reveal(make_world(GRAY, labels=(0, 3, 3)), "data-enhanced")
    found = exhume.attack("public-centres")(p, key=1)
    other = {n: torch.randn_like(t) for n, t in p.observed.items()}
    again = exhume.attack("public-centres")(replace(p, observed=other), key=1)
    assert torch.equal(found.inputs, again.inputs)
    assert found.inputs.shape == (3, *GRAY.shape)


def test_one_example_of_a_class_is_guessed_by_the_mean_of_the_class():
    w = make_world(VECTOR, labels=(1, 4), public=200)
    assert w.public is not None
    found = exhume.attack("public-centres")(reveal(w), key=0)
    inputs, labels = w.public.inputs.double(), w.public.targets
    for x, y in zip(found.inputs, (1, 4), strict=True):
        mean = shrunk_class_mean(inputs, labels, torch.tensor(y))
        torch.testing.assert_close(x.double(), mean, rtol=1e-5, atol=1e-6)


def test_the_class_mean_is_that_of_many_and_the_common_one_of_none():
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(400)
    means = 5 * torch.randn(3, 6, generator=source).double()
    inputs = means[labels] + torch.randn(1200, 6, generator=source).double()
    found = shrunk_class_mean(inputs, labels, torch.tensor(1))
    torch.testing.assert_close(found, inputs[labels == 1].mean(0), rtol=1e-3, atol=0.01)
    none = shrunk_class_mean(inputs, labels, torch.tensor(7))
    torch.testing.assert_close(none, inputs.mean(0))


def test_a_class_that_tells_nothing_is_drawn_to_the_mean_of_all():
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(60, 50, generator=source).double()
    labels = torch.arange(20).repeat(3)
    found = shrunk_class_mean(inputs, labels, torch.tensor(2))
    own, whole = inputs[labels == 2].mean(0), inputs.mean(0)
    assert float((found - whole).norm()) < 0.5 * float((own - whole).norm())


def test_several_examples_of_a_class_have_as_many_centres():
    w = make_world(VECTOR, labels=(2, 2, 2), public=60)
    found = exhume.attack("public-centres")(reveal(w), key=0).inputs
    assert len(found.unique(dim=0)) == 3


def test_fewer_public_examples_than_private_ones_are_repeated():
    w = make_world(VECTOR, labels=(0, 1, 2, 3), public=2)
    p = reveal(w, "data-enhanced")
    found = exhume.attack("public-centres")(replace(p, targets=UNKNOWN), key=0)
    assert found.inputs.shape == (4, *VECTOR.shape)


@pytest.mark.parametrize("labels", [(3,), (0, 0, 1)])
def test_class_means_come_nearer_than_the_prior_mean_on_digits(labels):
    """The class tells a digit: what is known of it belongs to guessing."""
    ours, theirs = [], []
    for seed in range(6):
        spec = replace(DIGITS, seed=seed, batch_size=len(labels))
        for name, errors in (("public-centres", ours), ("prior-mean", theirs)):
            result = run_trial(replace(spec, attack={"name": name}))
            assert result.baseline
            errors += result.scores["mse"]
    assert sum(ours) < 0.85 * sum(theirs)


def test_decoys_have_the_labels_and_are_other_examples():
    w = make_world(GRAY, labels=(1, 0, 1), public=60)
    found, rest = decoys(w, 5)
    assert rest is not None
    assert not bool(rest.found_in(found).any())
    assert found.targets.tolist() == [1, 0, 1]
    assert not bool(found.found_in(w.batch).any())
    assert len(found.inputs.unique(dim=0)) == 3
    assert torch.equal(found.inputs, decoys(w, 5)[0].inputs)
    kept = (w.public.targets != 0).nonzero().flatten()
    few = replace(w, public=w.public.select(kept))
    with pytest.raises(Unsuited, match="label 0"):
        decoys(few, 5)


def test_the_placebo_of_an_exact_attack_is_no_better_than_a_guess():
    exact, decoy = (run_trial(replace(DIGITS, placebo=p)) for p in (False, True))
    assert exact.status == decoy.status == "done"
    assert exact.scores["mse"][0] < 1e-9
    assert decoy.scores["mse"][0] > 0.01
    assert decoy.true_labels == exact.true_labels
    assert decoy.guessed_labels == exact.guessed_labels


def test_the_placebo_of_a_guess_is_the_guess():
    spec = replace(DIGITS, attack={"name": "public-centres"}, batch_size=4)
    pair = [run_trial(replace(spec, placebo=p)).scores["mse"] for p in (False, True)]
    # It has four public examples less.
    assert pair[0] == pytest.approx(pair[1], rel=0.1)


def test_a_placebo_has_an_id_of_its_own_and_the_trial_keeps_its():
    assert replace(DIGITS, placebo=True).id != DIGITS.id
    assert "placebo" not in DIGITS._record()
    assert replace(DIGITS, placebo=True).released == DIGITS.released


def test_the_placebo_of_a_training_trains_on_the_decoys():
    spec = replace(
        DIGITS,
        model={"name": "tangent-mlp", "hidden": [20]},
        observation={"name": "fine-tuning", "target_loss": 0.1},
        dtype="float64",
        attack={"name": "prior-mean"},
        placebo=True,
    )
    result = run_trial(spec)
    assert result.status == "done", result.reason


def test_scores_of_a_placebo_are_matched_to_the_private_examples():
    w = make_world(GRAY, labels=(0, 1), public=60)
    guess = exhume.attack("public-centres")(reveal(w), key=0)
    values = score(guess, w.batch).mse
    assert all(v is not None and v > 0 for v in values)
