"""Formulas of attacks on updates and trainings, each against a slow definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from exhume.attacks.engine.discrepancy import (
    angle_and_length,
    cosine_distance,
    squared_euclidean,
)
from exhume.attacks.engine.epochs import fuse_epochs, order_invariance
from exhume.attacks.engine.local_steps import small_step_rate
from exhume.attacks.engine.surrogate import (
    bending,
    bezier_point,
    interpolated_weights,
)
from exhume.attacks.engine.tangent_features import (
    DenseFeatures,
    layered_gram,
    layered_moment,
    make_features,
)
from exhume.attacks.engine.tangent_view import sharpness_schedule
from exhume.attacks.engine.update_labels import total_step
from exhume.attacks.engine.variable_projection import (
    explained_residual,
    feature_weights,
    half_residual,
    projected_loss,
)
from exhume.attacks.relaxations.span import (
    decayed_change,
    input_span,
    noise_edge,
    pull_of_decay,
)
from exhume.observations.fine_tuning import (
    FineTuning,
    kernel_regression,
    tangent_features,
)
from exhume.observations.local_training import Optimiser
from exhume.observations.update import Update
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import flatten, scale
from toys import GRAY, smooth, smooth_mlp


def draw(*shape: int, key: int = 0) -> torch.Tensor:
    local = torch.Generator().manual_seed(key)
    return torch.randn(shape, generator=local, dtype=torch.float64)


# --- updates -------------------------------------------------------------------------

START, END = {"w": draw(3, 4, key=1)}, {"w": draw(3, 4, key=2)}


def test_paths_between_weights_begin_and_end_where_they_should():
    control = {"w": draw(3, 4, key=3)}
    for share, expected in ((0.0, START), (1.0, END)):
        for point in (
            interpolated_weights(START, END, share),
            bezier_point(START, control, END, share),
        ):
            torch.testing.assert_close(point["w"], expected["w"])
    middle = interpolated_weights(START, END, 0.5)
    straight = bezier_point(START, middle, END, 0.3)
    torch.testing.assert_close(
        straight["w"], interpolated_weights(START, END, 0.3)["w"]
    )
    assert float(bending(middle, START, END)) == pytest.approx(0.0, abs=1e-12)
    assert float(bending(START, START, END)) == pytest.approx(0.25)


def test_the_length_counts_beside_the_angle():
    first, second = {"w": draw(5, key=1)}, {"w": draw(5, key=2)}
    power = float(second["w"].square().sum())
    expected = float(cosine_distance(first, second)) + 0.3 * (
        float(squared_euclidean(first, second)) / power
    )
    assert float(angle_and_length(first, second, 0.3)) == pytest.approx(expected)
    assert float(angle_and_length(second, second)) == pytest.approx(0.0, abs=1e-12)
    assert float(angle_and_length(scale(2, second), second)) == pytest.approx(0.1)


def test_what_ties_epochs_does_not_see_their_order():
    features = draw(3, 4, 2, key=5)
    means = features.mean(dim=1)
    pairs = [(a - b).square().mean() for a, b in itertools.product(means, means)]
    assert float(order_invariance(features)) == pytest.approx(float(sum(pairs)) / 9)
    turned = torch.stack([f[torch.randperm(4)] for f in features])
    torch.testing.assert_close(order_invariance(turned), order_invariance(features))


def test_copies_of_a_batch_are_matched_before_they_are_averaged():
    batch, labels = draw(4, 6, key=1), torch.tensor([0, 0, 1, 1])
    shuffled = batch[[1, 0, 3, 2]]
    fused = fuse_epochs(torch.stack([batch, shuffled]), labels)
    torch.testing.assert_close(fused, batch)


def test_the_step_size_of_small_steps_explains_the_length():
    update = {"w": draw(7, key=3)}
    assert small_step_rate(update, scale(0.02, update)) == pytest.approx(0.02)
    assert small_step_rate(scale(0, update), update) > 0
    assert small_step_rate(update, scale(0, update)) == 1.0


@pytest.mark.parametrize(
    "rule", [Optimiser(), Optimiser(momentum=0.9), Optimiser(weight_decay=0.1)], ids=str
)
def test_the_total_step_is_that_of_a_weight_under_a_constant_force(rule):
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    own = torch.optim.SGD(
        [weight], lr=0.05, momentum=rule.momentum, weight_decay=rule.weight_decay
    )
    for _ in range(6):
        weight.grad = torch.ones_like(weight)
        own.step()
    assert total_step(rule, 6, 0.05) == pytest.approx(-float(weight.detach()))


# --- tangent features ----------------------------------------------------------------


def features() -> tuple[Task, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a task, inputs, the explicit Jacobian [R, P] and an observation [P]."""
    task = Task(smooth_mlp(GRAY).double())
    inputs = smooth(GRAY, 3, 4).double()
    theta = {n: p.detach() for n, p in task.parameters().items()}
    rows = tangent_features(task, inputs, theta)
    jacobian = torch.cat([t.flatten(0, 1).flatten(1) for t in rows.values()], dim=1)
    return task, inputs, jacobian, draw(jacobian.shape[1], key=9)


def test_products_of_features_need_no_jacobian():
    task, inputs, jacobian, observed = features()
    theta = {n: p.detach() for n, p in task.parameters().items()}
    shapes = [(n, p.shape, p.numel()) for n, p in theta.items()]
    parts = observed.split([size for *_, size in shapes])
    values = {n: v.reshape(s) for (n, s, _), v in zip(shapes, parts, strict=True)}
    ones = {n: torch.ones_like(t) for n, t in values.items()}
    own = make_features(task, [theta], values, ones, GRAY)
    assert isinstance(own, DenseFeatures)
    gram, moment = own.products(inputs)
    torch.testing.assert_close(gram, jacobian @ jacobian.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moment, jacobian @ observed, rtol=1e-12, atol=1e-12)
    layers = own.rows(inputs)
    torch.testing.assert_close(layered_gram(layers, layers), gram)
    torch.testing.assert_close(layered_moment(layers), moment)


def test_projected_weights_solve_the_ridge_regression():
    _, _, jacobian, observed = features()
    gram, moment = jacobian @ jacobian.T, jacobian @ observed
    energy, ridge = float(observed @ observed), 1e-3
    level = ridge * float(gram.diagonal().mean())
    root = level**0.5 * torch.eye(len(gram), dtype=torch.float64)
    design = torch.cat([jacobian.T, root])
    wanted = torch.cat([observed, torch.zeros(len(gram), dtype=torch.float64)])
    exact = torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0]
    weights = feature_weights(gram, moment, ridge)
    torch.testing.assert_close(weights, exact, rtol=1e-8, atol=1e-10)
    least = float((design @ exact - wanted).square().sum()) / energy
    loss = float(projected_loss(gram, moment, energy, ridge))
    assert loss == pytest.approx(least)
    assert 0 <= loss <= 1
    plain = float((observed - jacobian.T @ weights).square().sum())
    found = explained_residual(gram, moment, energy, weights)
    assert found == pytest.approx(plain / energy)
    half = float(half_residual(gram, moment, energy, weights))
    assert half == pytest.approx(plain / 2)


def test_what_features_span_is_explained():
    _, _, jacobian, _ = features()
    observed = jacobian.T @ draw(len(jacobian), key=2)
    gram, moment = jacobian @ jacobian.T, jacobian @ observed
    loss = projected_loss(gram, moment, float(observed @ observed), 1e-12)
    assert float(loss) < 1e-9


def test_the_sharpness_grows_geometrically_and_arrives():
    assert sharpness_schedule(0.0, 10, 200) == 10
    assert sharpness_schedule(0.45, 10, 200) == pytest.approx(math.sqrt(2000))
    assert sharpness_schedule(0.95, 10, 200) == pytest.approx(200)


# --- trainings to the end ------------------------------------------------------------


def test_kernel_regression_fits_with_the_least_norm():
    task, inputs, jacobian, _ = features()
    theta = {n: p.detach() for n, p in task.parameters().items()}
    residuals = draw(3, len(jacobian) // 3, key=4)
    change = kernel_regression(tangent_features(task, inputs, theta), residuals, 1e-12)
    flat = flatten(change)
    expected = torch.linalg.pinv(jacobian) @ residuals.reshape(-1)
    torch.testing.assert_close(flat, expected, rtol=1e-6, atol=1e-9)


def test_the_linearised_change_lies_in_the_span_of_the_features():
    task, inputs, jacobian, _ = features()
    labels = torch.tensor([0, 1, 2])
    change = FineTuning(linearised=True).forward(task, Candidate(inputs, labels))
    flat = flatten(change).detach()
    inside = jacobian.T @ torch.linalg.lstsq(jacobian.T, flat[:, None]).solution
    assert float((flat - inside[:, 0]).norm()) < 1e-8 * float(flat.norm())


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({}, True),
        ({"momentum": 0.9}, True),
        ({"momentum": 0.9, "nesterov": True}, True),
        ({"clip": 0.1}, True),
        ({"weight_decay": 0.1}, True),
        ({"optimiser": "adam", "rate": 0.01}, False),
    ],
    ids=str,
)
def test_the_change_of_the_first_layer_lies_in_the_span_of_the_inputs(options, exact):
    task = Task(smooth_mlp(GRAY).double())
    inputs, labels = smooth(GRAY, 5, 4).double(), torch.tensor([0, 1, 2, 3, 4])
    update = Update(epochs=4, batch_size=2, **options)
    change = update.forward(task, Candidate(inputs, labels))
    name = next(n for n in change if n.endswith("weight"))
    start = task.parameters()[name].detach()
    pull = update.rule.pull(len(update.batches(5)), update.known_rate or 1.0)
    data = decayed_change(change[name].detach(), start, pull or 1.0)
    span = input_span(data, most=5)
    basis = torch.linalg.qr(inputs.flatten(1).T).Q
    outside = span.basis.T - basis @ (basis.T @ span.basis.T)
    assert (float(outside.norm()) < 1e-6) == exact
    if options.get("weight_decay"):
        found = pull_of_decay(change[name].detach(), start, rank=5)
        assert found == pytest.approx(pull, abs=1e-4)


def test_noise_stays_below_its_edge():
    noise = 0.1 * draw(60, 40, key=7)
    largest = float(torch.linalg.svdvals(noise)[0])
    edge = noise_edge(0.1, 60, 40)
    assert 0.8 * edge < largest < 1.05 * edge
