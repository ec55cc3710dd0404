"""Splitting where a search on tangent features has stalled."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import exhume
from exhume.attacks.engine.projection_descent import (
    POLISH_RIDGE,
    ProjectionDescent,
    explain,
)
from exhume.attacks.engine.tangent_features import PlainFeatures, TangentFeatures
from exhume.attacks.engine.tangent_splitting import split_apart, splitting_matrix
from exhume.attacks.engine.tangent_view import TangentView, tangent_view
from exhume.attacks.engine.variable_projection import half_residual
from exhume.attacks.relaxations.identity import InUnits
from exhume.attacks.unknowns import Unknowns
from exhume.attacks.weights.splitting import smallest_eigenpair
from exhume.errors import InvalidInput, Unsuited
from exhume.observations.fine_tuning import FineTuning
from exhume.observations.gradient import Gradient
from exhume.observations.weights import Weights
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.mechanism import Mechanism
from exhume.problem.reconstruction import Stopwatch
from exhume.problem.relaxation import Units
from exhume.problem.task import Task
from exhume.problem.world import World
from test_fine_tuning import changed, digits, hits, noise, wide
from toys import GRAY, homogeneous, make_world, reveal, seeded

LIMIT = FineTuning(linearised=True)
PIXELS = Unknowns(InUnits(GRAY, Units()), GRAY)
MIDDLE = torch.full((GRAY.dimension,), 0.5, dtype=torch.float64)


def seen(problem) -> TangentView:
    view = tangent_view(problem)
    assert view is not None
    return view


def without_range(activation: str) -> Problem:
    """Return a change by examples that no range cuts off."""
    own, spec = digits(), EventSpec.vector(GRAY.dimension)
    model = exhume.model("tangent-mlp", hidden=(60,), activation=activation)
    task = Task(model.build(spec, 1, 0).double(), loss="mse")
    batch = Batch(own.inputs.flatten(1), own.targets, spec)
    return reveal(World(task, batch, Mechanism(LIMIT)))


def misfit(features: TangentFeatures, x: torch.Tensor, a: torch.Tensor) -> float:
    with torch.no_grad():
        gram, moment = features.products(x)
        return float(half_residual(gram, moment, features.energy, a.flatten()))


@pytest.mark.parametrize("kind", ["dense", "plain"])
@pytest.mark.parametrize("observation", [LIMIT, Gradient()], ids=["change", "gradient"])
def test_the_splitting_matrix_predicts_the_change_of_the_misfit(kind, observation):
    """(ε²/2) vᵀSv with the weights held and halved, three outputs at once."""
    task = wide(20, outputs=3, activation="softplus")
    if observation.kind == "gradient":
        task = Task(task.model)
    view = seen(changed(observation, task)[0])
    features = view.features()
    if kind == "plain":
        features = PlainFeatures(view.task, view.points, view.values, view.precisions)
    x = 0.5 + 0.2 * noise((2, *GRAY.shape), 3)
    a = noise((2, 3), 4) / 10
    before = misfit(features, x, a)
    for i in range(2):
        z = x.flatten(1)
        product = splitting_matrix(features, PIXELS, z, a, i)
        curvature, v = smallest_eigenpair(product, x[i].flatten())
        step = v.reshape(x[i].shape)
        gains = []
        for epsilon in (4e-2, 2e-2):
            halves = torch.cat([x, x[i : i + 1] - epsilon * step])
            halves[i] = x[i] + epsilon * step
            weights = torch.cat([a, a[i : i + 1] / 2])
            weights[i] = a[i] / 2
            after = misfit(features, halves, weights)
            gains.append((after - before) / (epsilon**2 / 2))
        # Richardson: the error is of order ε²
        measured = gains[1] + (gains[1] - gains[0]) / 3
        assert measured == pytest.approx(curvature, rel=1e-3)


def test_a_network_without_curvature_cannot_be_split():
    """Features of a linear network are linear in x: two halves are one."""
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 2).double()
    problem, own = changed(Gradient(), Task(net))
    features = seen(problem).features()
    assert explain(features, own.inputs[:2]).residual > 1e-3
    z = own.inputs[:2].flatten(1)
    assert split_apart(features, PIXELS, z, MIDDLE, 1) is None


def test_a_merged_candidate_escapes():
    """Two images of one class share a candidate: no move helps, a split does."""
    problem, own = changed(LIMIT)
    view = seen(problem)
    descent = ProjectionDescent(
        view=view,
        unknowns=PIXELS,
        step_size=0.02,
        box=0.01,
        deadline=math.inf,
        watch=Stopwatch(),
    )
    features = view.features()

    def left(z):
        return explain(features, PIXELS.inputs([z])).residual

    merged = own.inputs[1:3].mean(dim=0, keepdim=True)
    start = torch.cat([own.inputs[[0, 3]], merged]).flatten(1)
    stalled = descent.polish(start, 150, POLISH_RIDGE)
    before = left(stalled)
    assert before > 1e-3
    assert left(descent.polish(stalled, 50, POLISH_RIDGE)) > 0.9 * before
    halves = split_apart(features, PIXELS, stalled, MIDDLE, 1)
    assert halves is not None
    assert len(halves) == 4
    assert left(halves) < before
    found = descent.refine(descent.polish(halves, 150, POLISH_RIDGE), 60, 100)
    assert left(found) < 1e-6 * before
    assert hits(PIXELS.inputs([found]), own) == len(own)


WEAK = {"candidates": 1, "iterations": 20, "polish": 25, "newton": 5}


@pytest.mark.parametrize("inner", ["tangent-kernel", "subspace"])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_splitting_never_ends_above_what_it_began_with(inner, activation):
    problem = without_range(activation)
    options = {**WEAK, "rounds": 0}
    plain = exhume.attack(
        inner, **({"options": options} if inner == "subspace" else options)
    )
    attack = exhume.attack(
        "sample-splitting", inner=inner, options={**WEAK, "rounds": 1}
    )
    gains = []
    for key in range(2):
        before, after = plain(problem, key), attack(problem, key)
        assert before.objective is not None
        assert after.objective is not None
        assert after.objective <= before.objective
        assert after.objective == pytest.approx(
            attack.objective(problem, after.inputs, after.targets), rel=1e-6
        )
        gains.append(before.objective / after.objective)
    assert max(gains) > 1.05


def test_an_inner_attack_that_does_not_suit_says_so():
    on_change, _ = changed(LIMIT)
    with pytest.raises(Unsuited, match=r"inner is 'kkt'.*choose.*'tangent-kernel'"):
        exhume.attack("sample-splitting")(on_change)
    weights = reveal(make_world(model=homogeneous(GRAY), observation=Weights()))
    with pytest.raises(Unsuited, match=r"inner is 'subspace'.*choose.*'kkt'"):
        exhume.attack("sample-splitting", inner="subspace")(weights)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inner": "pca"}, "inner"),
        ({"options": {"polish": 5}}, "options would be ignored.*directly"),
        ({"inner": "subspace", "rate": 0.1}, "rate would be ignored.*in options"),
        ({"inner": "tangent-kernel", "options": {"polish": -5}}, "polish"),
        ({"inner": "tangent-kernel", "options": {"box": -5.0}}, "box"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        exhume.attack("sample-splitting", **options)


def test_an_unknown_escape_is_refused():
    with pytest.raises(InvalidInput, match="escape"):
        exhume.attack("tangent-kernel", escape="teleport")
