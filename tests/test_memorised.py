"""What a training left in the weights: shares beside the null, in numbers and words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exhume.audit.memorised import (
    best_correlations,
    memorised,
    null_level,
    recovered,
)
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Task
from exhume.problem.world import World
from report_pages import trial, written
from toys import GRAY, smooth, smooth_mlp

LABELS = torch.zeros(6, dtype=torch.long)


def world() -> World:
    private = Batch(smooth(GRAY, 6, 1), LABELS, GRAY)
    public = Batch(smooth(GRAY, 40, 2), torch.zeros(40, dtype=torch.long), GRAY)
    return World(Task(smooth_mlp(GRAY)), private, Mechanism(Gradient()), public)


def test_correlations_are_those_of_numpy_to_the_nearest_candidate():
    own, centre = world(), smooth(GRAY, 1, 9).double()[0]
    x, z = own.batch.inputs.double(), own.public.inputs[:5].double()
    got = best_correlations(x, z, centre)
    for i, value in enumerate(got):
        pairs = [
            np.corrcoef((x[i] - centre).flatten(), (c - centre).flatten())[0, 1]
            for c in z
        ]
        assert float(value) == pytest.approx(max(pairs), abs=1e-12)
    assert recovered(torch.tensor([0.95, 0.9, 0.1]), 0.9) == pytest.approx(1 / 3)
    assert null_level(torch.tensor([0.2, 0.7])) == pytest.approx(0.7)


def test_half_of_the_training_set_is_told_from_images_never_seen():
    own = world()
    guesses = torch.cat([own.batch.inputs[:3], 1 - own.batch.inputs[3:]])
    facts, found = memorised(own, guesses)
    assert found is not None
    assert (found[:3] > 0.999).all()
    assert facts["recovered_0.9"] == pytest.approx(0.5, abs=0.17)
    assert facts["held_out"] == 40.0
    assert facts["held_out_0.9"] <= facts["held_out_0.8"] <= facts["held_out_0.7"]
    assert facts["null_level"] < 1
    bare = World(own.task, own.batch, own.mechanism)
    assert memorised(bare, guesses) == ({}, None)


def of_training(share: float, null: float, residual: float, oracle: float, p=4000.0):
    facts = {f"recovered_{t}": share for t in (0.9, 0.8, 0.7)}
    facts |= {f"held_out_{t}": null for t in (0.9, 0.8, 0.7)}
    facts |= {"held_out": 100.0, "null_level": 0.6, "parameters": p, "unknowns": 72.0}
    result = trial("kkt", 0.01, size=2, facts=facts)
    result.arrays["best_correlation"] = np.array([0.5, 0.95], dtype=np.float32)
    from dataclasses import replace

    return replace(result, objective=residual, objective_at_truth=oracle)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0.5, 0.0, 0.1, 0.1), "50 % of the training images were recovered"),
        ((0.5, 0.4, 0.1, 0.1), "no evidence of memorisation"),
        ((0.0, 0.0, 0.1, 0.1), "No training image was recovered"),
        ((0.5, 0.0, 0.01, 0.1), "it is over-fitted"),
        ((0.5, 0.0, 0.3, 0.1), "the search ended too early"),
        ((0.5, 0.0, 0.1, 0.1, 144.0), "2 parameters per unknown"),
    ],
)
def test_the_report_says_what_the_numbers_mean(tmp_path, numbers, sentence):
    _, page = written(tmp_path, [of_training(*numbers)])
    assert "What the training left in the weights" in page
    assert sentence in page


def test_the_map_shows_the_best_recovered_first(tmp_path):
    _, page = written(tmp_path, [of_training(0.5, 0.0, 0.1, 0.1)])
    told = page.index('<figcaption class="strong">0.95')
    assert told < page.index("<figcaption>0.5")
    _, plain = written(tmp_path / "other", [trial("dlg", 0.01)])
    assert "What the training left" not in plain
