"""What a training left in the weights: shares beside the null, in numbers and words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Task
from exhume.problem.world import World
from exhume.report import pictures
from exhume.trials.memorised import (
    best_correlations,
    memorised,
    null_level,
    recovered,
)
from report_pages import NOISE, trial, written
from toys import GRAY, smooth, smooth_mlp

LABELS = torch.zeros(6, dtype=torch.long)


def world() -> World:
    private = Batch(smooth(GRAY, 6, 1), LABELS, GRAY)
    public = Batch(smooth(GRAY, 40, 2), torch.zeros(40, dtype=torch.long), GRAY)
    return World(Task(smooth_mlp(GRAY)), private, Mechanism(Gradient()), public)


def test_correlations_are_those_of_numpy_to_the_nearest_candidate():
    own, centre = world(), smooth(GRAY, 1, 9).double()[0]
    assert own.public is not None
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
    facts, arrays = memorised(own, guesses)
    assert (arrays["best_correlation"][:3] > 0.999).all()
    assert facts["recovered_0.9"] == pytest.approx(0.5, abs=0.17)
    assert facts["held_out"] == 40.0
    assert facts["held_out_0.9"] <= facts["held_out_0.8"] <= facts["held_out_0.7"]
    assert facts["null_level"] < 1
    bare = World(own.task, own.batch, own.mechanism)
    assert memorised(bare, guesses) == ({}, {})


def test_the_best_candidate_is_the_one_that_the_correlation_belongs_to():
    own = world()
    assert own.public is not None
    x, centre = own.batch.inputs, own.public.inputs.mean(dim=0)
    # Contrast is lost: by squared error the mean image fits better than the right one.
    strong = centre + 5 * (x.flip(0) - centre)
    guesses = torch.cat([centre[None].repeat(6, 1, 1, 1), strong])
    _, arrays = memorised(own, guesses)
    assert arrays["best_index"].tolist() == [11, 10, 9, 8, 7, 6]
    assert torch.equal(arrays["best_candidate"], strong.flip(0).double())
    assert (arrays["best_correlation"] > 0.999).all()


def of_training(share: float, null: float, residual: float, oracle: float, p=4000.0):
    facts = {f"recovered_{t}": share for t in (0.9, 0.8, 0.7)}
    facts |= {f"held_out_{t}": null for t in (0.9, 0.8, 0.7)}
    facts |= {"held_out": 100.0, "null_level": 0.6, "parameters": p, "unknowns": 72.0}
    result = trial("kkt", 0.01, size=2, facts=facts)
    result.arrays["best_correlation"] = np.array([0.5, 0.95], dtype=np.float32)
    result.arrays["best_candidate"] = 1 - result.arrays["truth"]
    return replace(result, objective=residual, objective_at_truth=oracle)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0.5, 0.0, 0.1, 0.1), "50 % of the training images were recovered"),
        ((0.5, 0.4, 0.1, 0.1), "no evidence of memorisation"),
        ((0.0, 0.0, 0.1, 0.1), "No training image was recovered"),
        ((0.5, 0.0, 0.01, 0.1), "it is over-fitted"),
        ((0.5, 0.0, 0.3, 0.1), "the search ended too early"),
        (
            (0.5, 0.0, 0.1, 0.1, 144.0),
            "2 parameters per unknown number, p/(nd): label",
        ),
        ((0.5, 0.0, 0.1, 0.1), "55.6 parameters per unknown number, p/(nd): enough"),
        ((0.0, 0.0, 0.8, 0.95), "Even the training data leave 95 % of what was shared"),
        ((0.0, 0.0, 0.8, 0.95), "no attack of this kind can be right"),
    ],
)
def test_the_report_says_what_the_numbers_mean(tmp_path, numbers, sentence):
    _, page = written(tmp_path, [of_training(*numbers)])
    assert "What the training left in the weights" in page
    assert sentence in page


@pytest.mark.parametrize(("oracle", "cosine"), [(0.85, 1.0), (3.0, 1.0), (0.95, 0.3)])
def test_an_equation_that_may_hold_is_not_blamed(tmp_path, oracle, cosine):
    result = of_training(0.0, 0.0, oracle, oracle)
    result.facts["cosine_to_exact"] = cosine
    page, _ = written(tmp_path, [result])
    said = page.sections["memory"]
    assert "no attack of this kind" not in said
    assert ("what the defense has changed" in said) == (cosine < 1)


def test_seeds_that_recovered_something_are_not_denied(tmp_path):
    found = [of_training(share, 0.0, 0.1, 0.1) for share in (0.0, 0.0, 0.5)]
    seeds = [
        replace(result, spec=replace(result.spec, seed=seed))
        for seed, result in enumerate(found)
    ]
    page, _ = written(tmp_path, seeds)
    assert "recovered in at least half of the seeds" in page.sections["memory"]


def test_what_the_attack_says_is_printed_where_one_can_read_it(tmp_path):
    said = ("Restarts agree to 0.95.", "The loss at the reconstructions is 1.5.")
    first = replace(of_training(0.5, 0.0, 0.1, 0.1), notes=said)
    second = replace(first, spec=replace(first.spec, seed=1), notes=("Later.",))
    bare = of_training(0.5, 0.0, 0.1, 0.1)
    defended = replace(bare, spec=replace(bare.spec, defenses=NOISE), notes=("Noisy.",))
    page, _ = written(tmp_path, [first, second, defended])
    text = " ".join(page.sections["memory"].split())
    assert f"The attack on its answer for seed 0: {' '.join(said)}" in text
    assert "Noisy." in text
    assert "Later." not in text


def test_numbers_about_a_setting_leave_out_what_depends_on_the_attack(tmp_path):
    result = of_training(0.5, 0.0, 0.1, 0.1)
    result.facts["ordered_mse"] = 0.1
    page, _ = written(tmp_path, [result, trial("prior-mean", 0.1, size=2)])
    (head,) = [
        t[0] for t in page.tables if t[0][:1] == ["Defense"] and "unknowns" in t[0]
    ]
    assert head == ["Defense", "parameters", "unknowns"]


def test_the_map_shows_the_best_recovered_first(tmp_path):
    _, page = written(tmp_path, [of_training(0.5, 0.0, 0.1, 0.1)])
    told = page.index('<figcaption class="strong">0.95')
    assert told < page.index("<figcaption>0.5")


def test_the_map_shows_the_candidate_whose_correlation_it_prints(tmp_path):
    result = of_training(0.5, 0.0, 0.1, 0.1)
    page, html = written(tmp_path, [result])
    start = html.index('<div class="map">')
    shown = html[start : html.index("</details>", start)]
    sources = [s for s in page.values("src") if s in shown]
    for name, present in (("best_candidate", True), ("guess", False)):
        for example in result.arrays[name]:
            assert (pictures.png(example, 0.0, 1.0) in sources) == present


def test_what_guessing_finds_gets_no_row(tmp_path):
    found = of_training(0.5, 0.0, 0.1, 0.1)
    chance = replace(
        trial("prior-mean", 0.1, size=2, facts=found.facts), arrays=found.arrays
    )
    page, _ = written(tmp_path, [found, chance])
    rows = [t for t in page.tables if "Never trained on" in t[0]]
    assert [row[1] for table in rows for row in table[1:]] == ["kkt"]


def test_runs_without_best_candidates_get_no_map(tmp_path):
    result = of_training(0.5, 0.0, 0.1, 0.1)
    del result.arrays["best_candidate"]
    _, html = written(tmp_path, [result])
    assert "What the training left in the weights" in html
    assert '<div class="map">' not in html


def test_a_page_on_gradients_has_no_such_section(tmp_path):
    _, plain = written(tmp_path, [trial("dlg", 0.01)])
    assert "What the training left" not in plain
