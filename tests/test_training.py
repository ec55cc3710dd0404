"""Training to the end, the logistic loss, and where its one output must fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.observations.training import loss_normalised_rate, stationarity, train
from exhume.problem.batch import Batch
from exhume.problem.losses import LOSSES, logistic, signs
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.world import World
from exhume.trials.world import class_count
from toys import GRAY, mlp, seeded, smooth

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def classifier(loss: str = "logistic", outputs: int = 1) -> tuple[Task, Candidate]:
    task = Task(mlp(GRAY, outputs, 60).double(), loss=loss)
    return task, Candidate(smooth(GRAY, len(LABELS), 3).double(), LABELS)


def test_the_logistic_loss_is_the_cross_entropy_of_two_logits():
    f = torch.linspace(-40, 40, 6, dtype=torch.float64)[:, None].requires_grad_()
    two = torch.cat([torch.zeros_like(f), f], dim=1)
    expected = nn.functional.cross_entropy(two, LABELS)
    torch.testing.assert_close(logistic(f, LABELS), expected)
    torch.testing.assert_close(logistic(f, signs(LABELS).double()), expected)
    got, want = (torch.autograd.grad(v, f)[0] for v in (logistic(f, LABELS), expected))
    torch.testing.assert_close(got, want)
    assert signs(LABELS).tolist() == [-1, 1, 1, -1, 1, -1]
    assert LOSSES["logistic"].classes(f).tolist() == [0, 0, 0, 1, 1, 1]
    assert LOSSES["cross-entropy"].classes(two).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_logistic_task_has_one_output():
    task, candidate = classifier()
    batch = Batch(candidate.inputs, LABELS, GRAY)
    World(task, batch, Mechanism(Gradient()))
    with pytest.raises(InvalidInput, match="needs a model with one output"):
        World(classifier(outputs=2)[0], batch, Mechanism(Gradient()))
    with pytest.raises(InvalidInput, match="needs a model with one output"):
        logistic(torch.zeros(6, 2), LABELS)
    with pytest.raises(InvalidInput, match=r"labels lie in \[0, 2\].*expected 0 to 1"):
        World(task, Batch(batch.inputs, LABELS * 2, GRAY), Mechanism(Gradient()))
    assert class_count(0, LABELS, "logistic") == 1
    assert class_count(0, LABELS) == 2
    for classes, targets in ((2, LABELS), (0, 2 * LABELS)):
        with pytest.raises(InvalidInput, match="two classes and one output"):
            class_count(classes, targets, "logistic")


@pytest.mark.parametrize(("loss", "outputs"), [("logistic", 1), ("cross-entropy", 3)])
def test_training_reaches_a_loss_of_1e_8(loss, outputs):
    task, candidate = classifier(loss, outputs)
    before = {n: p.clone() for n, p in task.parameters().items()}
    found = train(task, candidate, iterations=3000, strict=True)
    assert found.reached
    assert found.loss <= 1e-8
    assert found.iterations < 3000
    after = found.task(task)
    value = after.loss_value(candidate.inputs, LABELS, after.parameters())
    assert float(value.detach()) == pytest.approx(found.loss)
    assert all(torch.equal(p, before[n]) for n, p in task.parameters().items())


def test_the_squared_error_falls_at_a_constant_rate():
    task, candidate = classifier("mse")
    own = Candidate(candidate.inputs, signs(LABELS).double())
    found = train(task, own, target_loss=1e-6, iterations=4000, momentum=0.5)
    assert found.reached
    assert found.loss <= 1e-6


def test_weight_decay_ends_at_a_stationary_point():
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False)), 0)
    task, (_, candidate) = Task(net.double(), loss="logistic"), classifier()
    found = train(
        task,
        candidate,
        target_loss=1e-9,
        iterations=5000,
        rate=0.05,
        weight_decay=0.1,
        momentum=0.9,
    )
    assert found.reached
    assert found.loss > 1e-3
    x, w = candidate.inputs.flatten(1), found.weights["1.weight"]
    y = signs(LABELS).double()
    weights = y * torch.sigmoid(-y * (x @ w.T).flatten()) / len(y) / 0.1
    torch.testing.assert_close(w, (weights[:, None] * x).sum(0, keepdim=True))
    gradient = {"1.weight": -0.1 * w}
    assert stationarity(found.weights, gradient, 0.1) == pytest.approx(0, abs=1e-12)
    assert stationarity(found.weights, gradient, 0.0) == pytest.approx(
        0.1 * float(w.norm())
    )


def test_the_step_grows_as_the_loss_falls():
    assert loss_normalised_rate(0.1, 3.0) == 0.1
    assert loss_normalised_rate(0.1, 0.002) == pytest.approx(10.0)
    assert math.isfinite(loss_normalised_rate(0.1, 0.0))


def test_a_training_that_fails_says_why():
    task, candidate = classifier("mse")
    own = Candidate(candidate.inputs, signs(LABELS).double())
    with pytest.raises(InvalidInput, match=r"diverged.*lower the rate"):
        train(task, own, rate=50.0)
    assert not train(task, own, iterations=2).reached
    with pytest.raises(InvalidInput, match=r"ended after 2 steps.*above the target"):
        train(task, own, iterations=2, strict=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"iterations": -1}, "iterations"),
    ],
    ids=str,
)
def test_bad_options_of_a_training_are_refused(options, words):
    with pytest.raises(InvalidInput, match=words):
        train(*classifier(), **options)
