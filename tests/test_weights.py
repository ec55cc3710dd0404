"""Trained weights: stationarity, homogeneity, and what attacks read from them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from exhume.attacks.relaxations.identity import InUnits
from exhume.attacks.relaxations.span import WhatTheLayerReads
from exhume.attacks.unknowns import Unknowns, box_penalty
from exhume.attacks.weights.descent import Cloud
from exhume.attacks.weights.entrance import (
    find_entrance,
    joined,
    make_span,
    noise_level,
    whitening,
)
from exhume.attacks.weights.fit import Fit, least_multiplier_penalty
from exhume.attacks.weights.smoothed_relu import smoothed, smoothed_relu
from exhume.attacks.weights.splitting import (
    smallest_eigenpair,
    split,
    splits_of,
    splitting_product,
)
from exhume.config import build
from exhume.errors import InvalidInput, Unsuited
from exhume.keys import generator
from exhume.observations.homogeneity import homogeneity, homogeneity_order
from exhume.observations.stationarity import (
    combination,
    decay_residual,
    gradient_rows,
    margins,
    nonnegative_multipliers,
    relative_residual,
    soft_margins,
)
from exhume.observations.weights import MULTIPLIERS, Weights
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Fact
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.relaxation import Units
from exhume.problem.task import Task
from exhume.problem.threat import ThreatModel
from exhume.problem.tree import flatten, norm
from exhume.problem.world import World
from exhume.trials.memorised import memorised
from exhume.trials.setting import collect_facts
from exhume.trials.world import split as split_data
from toys import GRAY, homogeneous, reveal, seeded, smooth

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
PLANE = EventSpec.vector(5)


def normal(*shape: int, key: int = 0) -> torch.Tensor:
    drawn = generator(key, "weights", "test")
    return torch.randn(*shape, generator=drawn, dtype=torch.float64)


def network(outputs: int = 1, width: int = 40, **_) -> Task:
    net = homogeneous(GRAY, outputs, width)
    return Task(net.double(), loss="logistic" if outputs == 1 else "cross-entropy")


def examples() -> Candidate:
    return Candidate(smooth(GRAY, len(LABELS), 3).double(), LABELS)


def theta_of(task: Task) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in task.parameters().items()}


# --- margins and stationarity --------------------------------------------------------


def test_margins_by_hand():
    one = torch.tensor([[2.0], [-3.0]])
    assert margins(one, torch.tensor([1, 0])).tolist() == [2.0, 3.0]
    assert margins(one, torch.tensor([-1.0, -1.0])).tolist() == [-2.0, 3.0]
    three = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 5.5]])
    assert margins(three, torch.tensor([1, 0])).tolist() == [2.0, -0.5]
    assert margins(three, torch.eye(3)[[1, 0]]).tolist() == [2.0, -0.5]


def test_soft_margins_have_the_direction_of_the_cross_entropy():
    """Independent oracle: −∇ℓ = (1 − p_y) ∇s, with ℓ and p of PyTorch."""
    outputs, classes = 3 * normal(4, 5), torch.tensor([0, 4, 2, 2])
    outputs.requires_grad_()
    (found,) = torch.autograd.grad(soft_margins(outputs, classes).sum(), outputs)
    loss = nn.functional.cross_entropy(outputs, classes, reduction="sum")
    (pull,) = torch.autograd.grad(-loss, outputs)
    wrong = 1 - outputs.detach().softmax(1).gather(1, classes[:, None])
    torch.testing.assert_close(wrong * found, pull)
    for few in (normal(4, 1), normal(4, 2)):
        label = torch.tensor([0, 1, 1, 0])
        torch.testing.assert_close(soft_margins(few, label), margins(few, label))
    chances = nn.functional.one_hot(classes, 5).double()
    torch.testing.assert_close(
        soft_margins(outputs, chances), soft_margins(outputs, classes)
    )


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_combination_is_that_of_the_rows_by_hand(outputs):
    """Independent oracle: the gradients of a two-layer network, written out."""
    task, own = network(outputs), examples()
    theta, lam = theta_of(task), normal(6, key=1).abs()
    found = combination(task, own.inputs, own.targets, lam, theta)
    rows = gradient_rows(task, own.inputs, own.targets, theta)
    torch.testing.assert_close(flatten(found), lam @ rows)
    x, (w, b, u) = own.inputs.flatten(1), theta.values()
    z = x @ w.T + b
    if outputs == 1:
        pull = (2.0 * own.targets - 1)[:, None].double()
    else:
        f = z.relu() @ u.T
        other = f.scatter(1, own.targets[:, None], -torch.inf).argmax(1)
        eye = torch.eye(3, dtype=torch.float64)
        pull = eye[own.targets] - eye[other]
    delta = (z > 0) * (pull @ u) * lam[:, None]
    expected = [delta.T @ x, delta.sum(0), (lam[:, None] * pull).T @ z.relu()]
    for got, want in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_multipliers_are_those_of_nonnegative_least_squares():
    from scipy.optimize import nnls

    rows, theta = normal(6, 30), normal(30, key=1)
    found = nonnegative_multipliers(rows @ rows.T, rows @ theta)
    expected, residual = nnls(rows.T.numpy(), theta.numpy())
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert float(found.min()) == 0.0
    left, again = relative_residual(rows, {"a": theta[:10], "b": theta[10:]})
    assert again.tolist() == pytest.approx(found.tolist())
    assert left == pytest.approx(residual**2 / float(theta @ theta))
    free, _ = relative_residual(rows, {"a": theta}, any_sign=True)
    assert free < left
    assert relative_residual(rows, {"a": 0 * theta})[0] == 0.0


def test_weights_of_known_examples_leave_nothing():
    """Constructed: Θ is a combination of features, so the truth explains all of it."""
    task, own = network(), examples()
    theta = theta_of(task)
    rows = gradient_rows(task, own.inputs, own.targets, theta)
    lam = normal(6, key=2).abs()
    made = {"all": lam @ rows}
    left, found = relative_residual(rows, made)
    assert left < 1e-18
    assert found.tolist() == pytest.approx(lam.tolist(), rel=1e-6)


def test_what_a_training_left_is_its_loss_or_its_distance_from_rest():
    task, own = network(), examples()
    start = theta_of(task)
    for model in (Weights(iterations=30), Weights(iterations=30, weight_decay=0.01)):
        trained = model.train(task, own)
        expected = trained.stationarity if model.weight_decay else trained.loss
        assert model.left(task, own, trained.weights) == pytest.approx(expected)
        assert model.left(task, own, start) > model.left(task, own, trained.weights)


def test_training_with_weight_decay_ends_where_the_residual_vanishes():
    """Any network: here one with biases and tanh, checked with autograd by hand."""
    layers = [nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 1)]
    task = Task(seeded(nn.Sequential(*layers), 1).double(), loss="logistic")
    own = examples()
    model = Weights(
        weight_decay=0.05, rate=0.2, momentum=0.9, target_loss=1e-9, iterations=4000
    )
    trained = model.train(task, own)
    assert trained.reached
    observed = trained.weights
    left = model.residual(task, own, observed)
    assert float(norm(left)) < 1e-8 * float(norm(observed))
    theta = {n: t.clone().requires_grad_() for n, t in observed.items()}
    f = torch.func.functional_call(task.model, theta, (own.inputs,))[:, 0]
    y = 2.0 * own.targets - 1
    slopes = -y * torch.sigmoid(-y * f.detach()) / (0.05 * 6)
    by_hand = torch.autograd.grad(-slopes @ f, list(theta.values()))
    for got, want in zip(by_hand, observed.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    multipliers = {MULTIPLIERS: (-y * slopes)}
    explicit = model.residual(task, replace(own, nuisance=multipliers), observed)
    assert float(norm(explicit)) < 1e-8 * float(norm(observed))
    other = decay_residual(task, own.inputs.flip(-1), LABELS, observed, 0.05)
    assert float(norm(other)) > 0.01 * float(norm(observed))


def test_a_long_training_comes_near_a_combination_of_margin_gradients():
    world = digits()
    task, model, own = world.task, Weights(), world.batch
    assert world.public is not None
    observed = model.forward(task, Candidate(own.inputs, own.targets))
    seen = model.task_seen(task, observed)
    value = seen.loss_value(own.inputs, own.targets, seen.parameters())
    assert float(value.detach()) <= 1e-8

    def left(batch: Batch) -> float:
        candidate = Candidate(batch.inputs, batch.targets)
        residual = model.residual(task, candidate, observed)
        return float(norm(residual) / norm(observed)) ** 2

    assert left(own) < 0.2
    assert left(world.public.select(range(10))) > left(own) + 0.1


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_the_evaluator_sees_what_training_left(decay):
    world = digits(4, iterations=30, weight_decay=decay)
    model, own = world.mechanism.observation, world.batch
    assert isinstance(model, Weights)
    trained = model.train(world.task, Candidate(own.inputs, own.targets))
    facts = collect_facts(world, world.observe(), world.exact()[0])
    name, other = ("training_loss", "stationarity")[:: -1 if decay else 1]
    expected = trained.stationarity if decay else trained.loss
    assert facts[name] == pytest.approx(expected, rel=1e-9)
    assert facts[name] > 0.1
    assert other not in facts


def test_trained_weights_have_no_derivative_and_say_so():
    task, own = network(), examples()
    model = Weights(iterations=3)
    values = model.forward(task, own)
    for call in (
        lambda: model.jvp(task, own, own.inputs),
        lambda: model.vjp(task, own, values),
    ):
        with pytest.raises(InvalidInput, match="trained to the end"):
            call()


@pytest.mark.parametrize(
    "options",
    [{"rate": 0.0}, {"iterations": 0}, {"momentum": 1.0}, {"weight_decay": -1.0}],
    ids=str,
)
def test_bad_options_of_the_observation_are_refused(options):
    with pytest.raises(InvalidInput, match=next(iter(options))):
        Weights(**options)


# --- homogeneity ---------------------------------------------------------------------


def order_of(*layers: nn.Module) -> tuple[float | None, Task]:
    task = Task(seeded(nn.Sequential(nn.Flatten(), *layers), 0).double())
    drawn = smooth(GRAY, 4, 1).double()
    return homogeneity_order(task, drawn, theta_of(task)), task


def test_the_order_of_a_relu_network_is_its_depth():
    first = nn.Linear(64, 8)
    assert order_of(first, nn.ReLU(), nn.Linear(8, 3, bias=False))[0] == (
        pytest.approx(2)
    )
    deep = (nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    order, task = order_of(first, nn.ReLU(), *deep)
    assert order == pytest.approx(3)
    found = homogeneity(task, GRAY)
    assert found.order == pytest.approx(3)
    assert "homogeneous of degree 3" in found.sentence


def test_what_breaks_homogeneity_is_named():
    order, task = order_of(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    assert order is None
    found = homogeneity(task, GRAY)
    assert found.culprits == ("3.bias",)
    assert "because of the bias '3.bias'" in found.sentence
    middle = nn.Linear(8, 8)
    _, task = order_of(nn.Linear(64, 8), nn.ReLU(), middle, nn.ReLU(), nn.Linear(8, 3))
    assert "the biases '3.bias', '5.bias' (" in homogeneity(task, GRAY).sentence
    _, task = order_of(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    found = homogeneity(task, GRAY)
    assert found.culprits == ()
    assert "activation" in found.sentence


# --- the parts of the attack ---------------------------------------------------------


def test_the_smoothed_relu_has_a_sigmoid_for_its_derivative():
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    value = smoothed_relu(z, 3.0)
    assert torch.equal(value, z.relu())
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(slope, torch.sigmoid(3 * z))
    (bend,) = torch.autograd.grad(slope.sum(), z)
    s = torch.sigmoid(3 * z.detach())
    torch.testing.assert_close(bend, 3 * s * (1 - s))
    task = network()
    changed = smoothed(task, 3.0)
    assert changed is not None
    assert any(isinstance(m, nn.ReLU) for m in task.model.modules())
    assert not any(isinstance(m, nn.ReLU) for m in changed.model.modules())
    assert smoothed(Task(nn.Linear(3, 2)), 3.0) is None


def test_the_entrance_is_found_behind_a_fixed_shift_and_scale():
    net = build("model", {"name": "homogeneous-mlp", "hidden": [8], "mean": [0.3]})
    task = Task(net.build(GRAY, 1, 0).double(), loss="logistic")
    found = find_entrance(task, GRAY)
    assert found is not None
    assert (found.weight, found.bias) == ("fc1.weight", "fc1.bias")
    x = smooth(GRAY, 2, 1).double().flatten(1)
    read = WhatTheLayerReads(found.slope, found.shift, GRAY.shape)
    torch.testing.assert_close(read.decode(x - 0.3), x.reshape(-1, *GRAY.shape))
    matrix = joined(theta_of(task), found)
    assert matrix.shape == (8, 65)
    assert find_entrance(Task(nn.Conv2d(1, 2, 3)), GRAY) is None
    first = task.parameters()["fc1.weight"].detach()
    assert float(first.std()) == pytest.approx(1e-3, rel=0.1)


def test_the_level_of_noise_and_what_stands_out_of_it():
    noise = 0.02 * normal(300, 80)
    level = noise_level(torch.linalg.svdvals(noise), 300, 80)
    assert level == pytest.approx(0.02, rel=0.03)
    assert noise_level(torch.linalg.svdvals(noise.T), 80, 300) == pytest.approx(level)
    inputs = normal(5, 80, key=1)
    weight = noise + normal(300, 5, key=2) @ inputs
    span = make_span(weight, 20)
    assert span is not None
    assert span.basis.shape == (5, 80)
    inside = inputs @ span.basis.T @ span.basis
    assert float((inside - inputs).norm() / inputs.norm()) < 0.02
    few = make_span(weight, 3)
    assert few is not None
    assert few.basis.shape == (3, 80)
    assert make_span(0 * weight, 3) is None


def test_whitening_makes_neurons_and_directions_equally_loud():
    sizes = torch.logspace(0, -2, 5, dtype=torch.float64)
    matrix = (normal(200, 5) * sizes) @ normal(5, 9, key=1)
    rows, columns = whitening(matrix, 5, 0.0)
    white = (rows[:, None] * matrix) @ columns
    torch.testing.assert_close(white.T @ white, torch.eye(5).double())
    lengths = matrix.norm(dim=1)
    torch.testing.assert_close(rows, lengths**-0.5)


def test_penalties_by_hand():
    x = torch.tensor([[-1.0, 0.5], [3.0, 1.0]])
    assert float(box_penalty(x, 0.0, 1.0)) == 1 + 4
    assert float(box_penalty(x, None, None)) == 0.0
    multipliers = torch.tensor([0.3, -0.1, 0.05])
    penalty = float(least_multiplier_penalty(multipliers, 0.1))
    assert penalty == pytest.approx(5 * (0.2**2 + 0.05**2))


# --- sample splitting ----------------------------------------------------------------


def tanh_fit() -> tuple[Fit, Cloud]:
    layers = [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)]
    task = Task(seeded(nn.Sequential(*layers), 2).double(), loss="logistic")
    plane = Unknowns(InUnits(PLANE, Units()), PLANE)
    fit = Fit(task, theta_of(task), plane, None, None, True, 0.0, 0.0)
    return fit, Cloud(normal(3, 5, key=3), 3 * normal(3).abs(), torch.tensor([1, 0, 1]))


def misfit(fit: Fit, cloud: Cloud) -> float:
    with torch.no_grad():
        return float(fit.loss(cloud.points, cloud.targets, cloud.multipliers)[1])


def test_the_splitting_matrix_predicts_the_change_of_the_misfit():
    """Six digits, measured: (ε²/2) vᵀSv (Shen et al.)."""
    fit, cloud = tanh_fit()
    before = misfit(fit, cloud)
    for found in splits_of(fit, cloud):
        gains = []
        for epsilon in (2e-2, 1e-2):
            after = misfit(fit, split(cloud, [found], epsilon))
            gains.append((after - before) / (epsilon**2 / 2))
        # Richardson: the error is of order ε²
        measured = gains[1] + (gains[1] - gains[0]) / 3
        assert measured == pytest.approx(found.curvature, rel=1e-6)


def test_a_split_lowers_the_misfit_where_it_says_so_and_moves_nothing_else():
    fit, cloud = tanh_fit()
    best = splits_of(fit, cloud)[0]
    assert best.curvature < 0
    halves = split(cloud, [best], 1e-2)
    assert misfit(fit, halves) < misfit(fit, cloud)
    assert len(halves.points) == 4
    own = halves.multipliers / 4
    assert float(own.sum()) == pytest.approx(float(cloud.multipliers.sum()) / 3)
    middle = (halves.points[best.index] + halves.points[3]) / 2
    torch.testing.assert_close(middle, cloud.points[best.index])


def test_lanczos_finds_what_the_dense_matrix_has():
    matrix = normal(60, 60)
    matrix = matrix + matrix.T
    value, vector = smallest_eigenpair(lambda v: matrix @ v, matrix[0])
    expected = torch.linalg.eigvalsh(matrix)[0]
    assert value == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(matrix @ vector, value * vector, rtol=0, atol=1e-2)
    small = matrix[:9, :9]
    value, _ = smallest_eigenpair(lambda v: small @ v, small[0])
    assert value == pytest.approx(float(torch.linalg.eigvalsh(small)[0]))


def test_lanczos_stops_at_a_matrix_of_zeros():
    value, vector = smallest_eigenpair(torch.zeros_like, normal(60))
    assert value == 0.0
    assert float(vector.norm()) == pytest.approx(1.0)


def test_a_network_without_curvature_cannot_be_split():
    task = Task(seeded(nn.Sequential(nn.Linear(5, 1)), 0).double(), loss="logistic")
    plane = Unknowns(InUnits(PLANE, Units()), PLANE)
    fit = Fit(task, theta_of(task), plane, None, None, True, 0.0, 0.0)
    point, one = normal(5), torch.ones(1, dtype=torch.float64)
    found = splitting_product(
        fit, point, torch.tensor([1]), one, theta_of(task), normal(5, key=1)
    )
    assert found.tolist() == [0.0] * 5


# --- attacks -------------------------------------------------------------------------


def digits(size: int = 10, key: int = 0, **options) -> World:
    source = build(
        "data", {"name": "relabelled", "classes": [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]}
    )
    whole = source.load()
    private, public = split_data(whole, source, size, key)
    assert public is not None
    net = build(
        "model", {"name": "homogeneous-mlp", "mean": [float(whole.inputs.mean())]}
    )
    task = Task(net.build(whole.spec, 1, key).double(), loss="logistic")
    return World(
        task,
        private.to(torch.float64),
        Mechanism(Weights(**options)),
        public.to(torch.float64),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kkt", {"iterations": 800, "restarts": 1}),
        ("sample-splitting", {"iterations": 300, "restarts": 1}),
    ],
)
def test_digits_are_read_from_a_trained_network_and_unseen_ones_are_not(name, options):
    world = digits()
    problem = reveal(world)
    attack = exhume.attack(name, keep="all", **options)
    guess = attack(problem)
    facts, _ = memorised(world, guess.inputs)
    assert facts["recovered_0.8"] >= 0.3
    assert facts["recovered_0.8"] > 8 * facts["held_out_0.8"]
    assert facts["held_out_0.9"] < 0.005
    few = exhume.attack(name, **options)(problem)
    assert few.inputs.shape == world.batch.inputs.shape
    assert few.targets.tolist() == world.batch.targets.sort().values.tolist()
    truth = attack.objective(problem, world.batch.inputs, world.batch.targets)
    assert truth is not None
    assert truth < 0.3
    assert not any(note.startswith("Warning") for note in guess.notes)
    assert any("p/(nd)" in note for note in few.notes)
    assert any("directions" in note for note in few.notes)


def test_restarts_are_pooled_and_their_agreement_is_told():
    problem = reveal(digits(6))
    guess = exhume.attack("kkt", iterations=60, restarts=2)(problem)
    assert {point.restart for point in guess.trace} == {0, 1}
    assert any("Restarts that fit equally well" in note for note in guess.notes)
    everything = exhume.attack("kkt", iterations=60, restarts=2, keep="all")(problem)
    assert len(everything.inputs) == 24


@pytest.mark.parametrize(
    "options",
    [
        {"span": False, "misfit": "plain", "solver": "sgd", "rate": 0.1},
        {"sharpness": 0.0},
        {"project": 10},
    ],
    ids=str,
)
def test_every_part_of_the_published_recipe_can_be_had(options):
    problem = reveal(digits(4))
    guess = exhume.attack("kkt", iterations=40, restarts=1, **options)(problem)
    assert bool(torch.isfinite(guess.inputs).all())
    assert guess.objective is not None
    assert 0 <= guess.objective <= 1 + 1e-9


def test_a_diverging_descent_is_told_as_one():
    problem = reveal(digits(4))
    wild = exhume.attack(
        "kkt",
        solver="sgd",
        rate=1e4,
        iterations=50,
        restarts=1,
        span=False,
        misfit="plain",
    )
    guess = wild(problem)
    assert guess.outcome.name == "DIVERGED"
    assert bool(torch.isfinite(guess.inputs).all())


def test_several_classes_and_real_targets():
    x = smooth(GRAY, 6, 3)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    many = World(
        Task(homogeneous(GRAY, 3, 60)), Batch(x, classes, GRAY), Mechanism(Weights())
    )
    guess = exhume.attack("kkt", iterations=60, restarts=1)(reveal(many))
    assert guess.targets.tolist() == [0, 0, 1, 1, 2, 2]
    real = Batch(x, 2.0 * (classes > 0).float() - 1, GRAY)
    options = {"weight_decay": 0.02, "iterations": 300}
    task = Task(homogeneous(GRAY, 1, 60), loss="mse")
    decayed = World(task, real, Mechanism(Weights(**options)))
    guess = exhume.attack("kkt", iterations=60, restarts=1)(reveal(decayed))
    assert guess.targets.shape == (6,)
    assert guess.targets.is_floating_point()
    assert any("weight decay 0.02" in note for note in guess.notes)


def test_three_classes_with_weight_decay_are_explained_by_soft_margins_alone():
    """The λ of the loss are non-negative, and hard margins miss a share of the pull."""
    x, classes = smooth(GRAY, 12, 3).double(), torch.tensor([0, 1, 2] * 4)
    layers = [nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)]
    model = Weights(weight_decay=0.02, rate=0.1, momentum=0.9, iterations=1000)
    task = Task(seeded(nn.Sequential(*layers), 1).double())
    problem = reveal(World(task, Batch(x, classes, GRAY), Mechanism(model)))
    attack = exhume.attack("kkt", iterations=5, restarts=1)
    assert attack.objective(problem, x, classes) < 0.01
    assert attack.objective(problem, x.flip(-1), classes) > 0.5
    fit = attack.setting(problem).fit
    assert replace(fit, soft=False).explained(x, classes)[0] > 0.3
    seen = task.with_model(problem.require(Fact.WEIGHTS).model)
    wrong = 1 - seen.predict(x, seen.parameters()).softmax(1)[range(12), classes]
    found = {MULTIPLIERS: wrong.detach() / (0.02 * 12)}
    given = Candidate(x, classes, nuisance=found)
    own = norm(model.residual(task, given, problem.observed))
    stated = norm(model.residual(task, Candidate(x, classes), problem.observed))
    assert float(own) == pytest.approx(float(stated), rel=1e-6)
    for name in ("kkt", "sample-splitting"):
        guess = exhume.attack(name, iterations=20, restarts=1)(problem)
        assert guess.targets.tolist() == classes.sort().values.tolist()
        assert bool(torch.isfinite(guess.inputs).all())


def test_what_cannot_be_attacked_is_a_sentence():
    x = smooth(GRAY, 6, 3)
    biased = seeded(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 1)), 0
    )
    own = Batch(x, LABELS, GRAY)
    world = World(Task(biased, loss="logistic"), own, Mechanism(Weights(iterations=5)))
    with pytest.raises(Unsuited, match=r"the bias '3\.bias'.*--schedule weight_decay="):
        exhume.attack("kkt", iterations=5)(reveal(world))
    decayed = replace(
        world, mechanism=Mechanism(Weights(iterations=5, weight_decay=0.1))
    )
    exhume.attack("kkt", iterations=5, restarts=1)(reveal(decayed))
    real = Batch(x, LABELS.float(), GRAY)
    task = Task(homogeneous(GRAY, 1), loss="mse")
    squared = World(task, real, Mechanism(Weights(iterations=5)))
    with pytest.raises(Unsuited, match=r"squared error.*--schedule weight_decay="):
        exhume.attack("kkt", iterations=5)(reveal(squared))
    gradient = World(task, real, Mechanism(exhume.observations.Gradient()))
    with pytest.raises(Unsuited, match="weights"):
        exhume.attack("kkt")(reveal(gradient))


def test_one_output_with_the_loss_of_many_is_refused_with_the_loss_to_give():
    world = digits(4, iterations=5)
    problem = reveal(world)
    wrong = replace(
        problem, task=replace(problem.require(Fact.WEIGHTS), loss="cross-entropy")
    )
    for name in ("kkt", "sample-splitting"):
        with pytest.raises(InvalidInput, match=r"one output.*--loss logistic"):
            exhume.attack(name, iterations=5)(wrong)


def test_a_network_that_was_hardly_trained_is_told_not_refused():
    world = digits(4, iterations=3)
    guess = exhume.attack("kkt", iterations=30, restarts=1)(reveal(world))
    assert re.match(
        r"Warning: the loss .* not trained to a low loss; .* may be anything\.$",
        guess.notes[0],
    )
    decayed = digits(4, iterations=3, weight_decay=0.01)
    guess = exhume.attack("sample-splitting", iterations=30, restarts=1)(
        reveal(decayed)
    )
    assert re.match(
        r"Warning: .* unexplained\. .* not settled; .* may be anything\.$",
        guess.notes[0],
    )


def test_unknown_labels_are_sought_in_all_classes():
    problem = ThreatModel("eavesdropper").reveal(world := digits(4), world.observe())
    guess = exhume.attack("kkt", iterations=30, restarts=1)(problem)
    assert guess.inputs.shape == (4, 1, 8, 8)
    assert set(guess.targets.tolist()) <= {0, 1}
    assert any("not known" in note for note in guess.notes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kkt", {"candidates": 0}),
        ("kkt", {"rate": 0.0}),
        ("kkt", {"sharpness": -1.0}),
        ("sample-splitting", {"distance": 0.0}),
        ("sample-splitting", {"rounds": -1}),
    ],
)
def test_bad_options_of_attacks_are_refused(name, options):
    with pytest.raises(InvalidInput, match=next(iter(options))):
        exhume.attack(name, **options)


@pytest.mark.parametrize(
    "options",
    [{"hidden": []}, {"hidden": [0]}, {"first_std": 0.0}, {"first_std": math.inf}],
    ids=str,
)
def test_bad_options_of_the_network_are_refused(options):
    with pytest.raises(InvalidInput, match=next(iter(options))):
        build("model", {"name": "homogeneous-mlp", **options})
