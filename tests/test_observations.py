"""Facts about the mean gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conformance.test_observations import LABELS, SETTINGS, case
from exhume.observations.gradient import Gradient
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import add, flatten, norm, scale, subtract
from toys import GRAY, seeded, smooth

# --- the gradient --------------------------------------------------------------------


@pytest.mark.parametrize("setting", [s for s in SETTINGS if "train" not in s])
def test_the_gradient_is_linear_in_the_batch_mean(setting):
    task, candidate = case(setting)
    whole = Gradient().forward(task, candidate)
    total = None
    for i in range(3):
        one = Candidate(candidate.inputs[i : i + 1], candidate.targets[i : i + 1])
        part = Gradient().forward(task, one)
        total = part if total is None else add(total, part)
    assert total is not None
    gap = subtract(whole, scale(1 / 3, total))
    assert float(norm(gap)) < 1e-12 * float(norm(whole))


def test_batch_norm_couples_examples_in_train_mode_only():
    for mode, coupled in (("train", True), ("eval", False)):
        task, candidate = case(f"batch norm, {mode}")
        twice = Candidate(candidate.inputs[[0, 0, 1]], candidate.targets[[0, 0, 1]])
        pair = Candidate(candidate.inputs[[0, 1]], candidate.targets[[0, 1]])
        single = [
            Gradient().forward(task, Candidate(x[None].repeat(2, 1, 1, 1), y.repeat(2)))
            for x, y in zip(pair.inputs, pair.targets, strict=True)
        ]
        mixed = scale(1 / 3, add(scale(2, single[0]), single[1]))
        gap = float(norm(subtract(Gradient().forward(task, twice), mixed)))
        assert (gap > 1e-2) == coupled


def test_the_gradient_of_a_linear_classifier_is_the_textbook_one():
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 0).double()
    task, x = Task(model), smooth(GRAY, 3, 4).double()
    p = (x.flatten(1) @ model[1].weight.T + model[1].bias).softmax(-1).detach()
    delta = (p - torch.eye(5, dtype=torch.float64)[LABELS]) / 3
    got = Gradient().forward(task, Candidate(x, LABELS))
    expected = {"1.weight": delta.T @ x.flatten(1), "1.bias": delta.sum(0)}
    torch.testing.assert_close(flatten(got), flatten(expected))
