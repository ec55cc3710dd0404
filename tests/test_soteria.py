"""Soteria: the score against a plain loop, what is removed, and the known break."""

import math

import pytest
import torch
from torch import nn

import exhume
from exhume import Mechanism, Task, World
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.soteria import (
    Soteria,
    default_layer,
    feature_sensitivity,
    sensitivity_score,
)
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.tree import flatten
from toys import GRAY, convolutional, make_world, mlp, reveal, seeded


@pytest.mark.parametrize("kind", ["convolutional", "relu"])
def test_slopes_equal_a_loop_over_features_and_examples(kind):
    net = convolutional(GRAY) if kind == "convolutional" else mlp(GRAY)
    w = make_world(GRAY, labels=(1, 0), model=net, dtype=torch.float64)
    layer = default_layer(w.task.model)
    r, slopes = feature_sensitivity(w.task, layer, w.batch.inputs)
    index = int(layer)
    head = w.task.model[:index]  # type: ignore[index]
    for b in range(2):
        x = w.batch.inputs[b : b + 1].clone().requires_grad_()
        features = head(x)[0]
        torch.testing.assert_close(r[b], features.detach())
        for j in range(0, len(features), 7):
            (row,) = torch.autograd.grad(features[j], x, retain_graph=True)
            assert float(row.norm()) == pytest.approx(float(slopes[b, j]), abs=1e-12)


def test_score_sums_over_the_batch_and_takes_dead_features_for_dead():
    r = torch.tensor([[2.0, 0.0, -1.0, 0.0], [4.0, 0.0, 1.0, 1.0]]).double()
    slopes = torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 1.0, 1.0]]).double()
    score = sensitivity_score(r, slopes)
    assert score[:3].tolist() == [1.0, 0.0, 4.0]
    assert float(score[3]) > 1e300


def test_default_layer_reads_features():
    assert default_layer(exhume.model("lenet-zhu").build(GRAY, 3, 0)) == "fc"
    assert default_layer(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))) == "1"
    assert default_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))) == "1"
    assert default_layer(nn.Linear(4, 3)) == ""
    with pytest.raises(InvalidInput, match="no trainable one"):
        default_layer(nn.Sequential(nn.Conv2d(1, 1, 3)))


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_the_columns_with_the_smallest_scores_go_and_nothing_else(ratio):
    w = make_world(
        GRAY, labels=(1, 0), model=convolutional(GRAY), defenses=(Soteria(ratio=ratio),)
    )
    released = w.observe().values
    exact = w.task.gradient(w.batch.inputs, w.batch.targets)
    r, slopes = feature_sensitivity(w.task, "3", w.batch.inputs)
    score = (slopes / r.abs()).sum(dim=0)
    removed = score.argsort()[: math.floor(ratio * len(score))]
    expected = exact["3.weight"].clone()
    expected[:, removed] = 0
    torch.testing.assert_close(released, {**exact, "3.weight": expected})
    law = w.mechanism.law(w.observe().plans, released)
    assert torch.equal(law.mask["3.weight"], (expected != 0))
    assert list(law.mask) == ["3.weight"]
    assert "private examples" in law.irregular
    assert all(torch.equal(law.mean(exact)[n], released[n]) for n in exact)


def test_dead_features_go_first_and_never_make_a_nan():
    w = make_world(GRAY, labels=(1, 0), model=mlp(GRAY), defenses=(Soteria(ratio=0.2),))
    released = w.observe().values
    exact = w.task.gradient(w.batch.inputs, w.batch.targets)
    dead = (exact["3.weight"] == 0).all(dim=0)
    assert int(dead.sum()) >= int(0.2 * len(dead))
    assert torch.equal(released["3.weight"], exact["3.weight"])


def test_hidden_zeros_void_the_whole_weight():
    stack = (Soteria(ratio=0.5), GaussianNoise(std=0.1))
    w = make_world(GRAY, model=convolutional(GRAY), defenses=stack)
    law = reveal(w).law
    assert not bool(law.mask["3.weight"].any())
    assert "jumps" in law.irregular


def test_layers_that_do_not_fit_are_refused():
    w = make_world(GRAY, model=convolutional(GRAY))
    with pytest.raises(InvalidInput, match=r"'0' is no trainable linear.*'3'"):
        Soteria(ratio=0.5, layer="0").calibrate(w.task, None, 0)
    defense = Soteria(ratio=0.5, layer="3")
    plan = defense.calibrate(w.task, None, 0)
    with pytest.raises(InvalidInput, match="personalise"):
        defense.apply(w.task.gradient(w.batch.inputs, w.batch.targets), plan, 0)
    rows = seeded(nn.Sequential(nn.Linear(8, 5), nn.Flatten(), nn.Linear(40, 5)), 0)
    by_rows = Mechanism(Gradient(), [Soteria(ratio=0.5, layer="0")])
    with pytest.raises(InvalidInput, match="one vector per example once"):
        World(Task(rows), w.batch, by_rows).observe()


def test_the_break_leaving_the_layer_out_recovers_a_face():
    face = exhume.dataset("faces").load().select([0])
    net = exhume.model("lenet-zhu").build(face.spec, 2, key=0)
    mechanism = Mechanism(Gradient(), [Soteria(ratio=0.8)])
    w = World(Task(net), face, mechanism)
    attack = exhume.attack("gauss-newton", restarts=1)
    adaptive = attack(reveal(w), key=0)
    blind = attack(reveal(w, "defense-unknown"), key=0)
    assert min(exhume.score(adaptive, face).values["psnr"]) > 80
    assert min(exhume.score(blind, face).values["psnr"]) < 20
    assert bool(flatten(w.observe().values).isfinite().all())
