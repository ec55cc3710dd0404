"""The nonlinear least squares attack: its parts against oracles, then the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import exhume
from exhume.attacks.engine.levenberg_marquardt import (
    Limits,
    conjugate_gradient,
    levenberg_marquardt,
)
from exhume.attacks.engine.map_residual import (
    map_objective,
    profile_objective,
    release_weights,
    rounding_weights,
)
from exhume.attacks.gauss_newton import GaussNewton
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.law import Law
from exhume.problem.reconstruction import Outcome, Stopwatch
from toys import COLOUR, GRAY, VECTOR, convolutional, make_world, smooth, smooth_mlp

EIGHT_BYTES = torch.float64


def world(spec, *, defenses=(), size=1, key=0, labels=None, dtype=EIGHT_BYTES):
    """One observation of smooth examples by a small tanh network with a prior."""
    x = smooth(spec, size, key).to(dtype)
    y = torch.arange(size) if labels is None else torch.tensor(labels)
    net = exhume.model("mlp", hidden=[24], activation="tanh").build(spec, 6, key)
    task = exhume.Task(net).to(dtype)
    public = exhume.Batch(
        smooth(spec, 60, 1000 + key).to(dtype), torch.arange(60) % 6, spec
    )
    prior = exhume.prior("gaussian").fit(public, task)
    mechanism = exhume.Mechanism(Gradient(), defenses)
    return exhume.World(task, exhume.Batch(x, y, spec), mechanism, public, prior)


def problem_of(made, key=0, threat="labels-known"):
    return exhume.ThreatModel(threat).reveal(made, made.observe(key))


def normal(*shape, key):
    local = generator(key, "normal")
    return torch.randn(shape, generator=local, dtype=EIGHT_BYTES)


def residual_of(made, **options):
    attack, problem = GaussNewton(**options), problem_of(made)
    return attack._residual(problem, attack._unknowns(problem)[0])


def point_of(residual, inputs):
    """Return the unknown at which a residual has these inputs, labels being known."""
    unknowns = residual.unknowns
    return unknowns.flat(unknowns.leaves(unknowns.relaxation.encode(inputs.double())))


def test_conjugate_gradient_equals_a_direct_solve():
    local = generator(0, "matrix")
    root = torch.randn(30, 30, generator=local, dtype=EIGHT_BYTES)
    matrix = root @ root.T + torch.eye(30, dtype=EIGHT_BYTES)
    target = torch.randn(30, generator=local, dtype=EIGHT_BYTES)
    found, products = conjugate_gradient(
        matrix.mv, target, relative_tolerance=1e-12, max_iterations=300
    )
    assert torch.allclose(found, torch.linalg.solve(matrix, target), rtol=1e-8)
    assert products < 300


def test_a_truncated_solve_is_a_descent_direction():
    local = generator(1, "matrix")
    root = torch.randn(30, 30, generator=local, dtype=EIGHT_BYTES)
    target = torch.randn(30, generator=local, dtype=EIGHT_BYTES)
    found, products = conjugate_gradient(
        (root @ root.T).mv, target, relative_tolerance=1e-12, max_iterations=3
    )
    assert products == 3
    assert found.dot(target) > 0


def test_map_objective_is_half_the_square_plus_the_energy():
    residual = torch.tensor([3.0, 4.0])
    assert map_objective(residual, 2.0).item() == pytest.approx(14.5)


@pytest.mark.parametrize("relaxation", ["projection", "box"])
@pytest.mark.parametrize("labels_known", [True, False])
def test_gradient_and_products_equal_finite_differences(labels_known, relaxation):
    made = world(GRAY, defenses=(exhume.defense("gaussian-noise", std=0.1),), size=2)
    residual = residual_of(made, relaxation=relaxation)
    if not labels_known:
        sought = replace(residual.unknowns, targets=None, outputs=6)
        residual = replace(residual, unknowns=sought)
    local = generator(2, "point")
    point = torch.rand(residual.numbers, generator=local, dtype=EIGHT_BYTES)
    direction = torch.randn(residual.numbers, generator=local, dtype=EIGHT_BYTES)
    model = residual.linearise(point)
    step = 1e-5

    def along(t):
        return residual.objective(point + t * direction)

    slope = (along(step) - along(-step)) / (2 * step)
    assert model.gradient.dot(direction).item() == pytest.approx(slope, rel=1e-5)
    # JᵀJ + P along a direction, from differences of the residual itself.
    with torch.no_grad():
        ahead = residual.residual(point + step * direction)
        behind = residual.residual(point - step * direction)
    image = (ahead - behind) / (2 * step)
    inputs = residual.unknowns.inputs
    ends = [inputs(point + t * direction) for t in (step, -step)]
    moved = (ends[0] - ends[1]) / (2 * step)
    curved = residual.prior.curvature(inputs(point), moved).mul(moved).sum()
    expected = image.dot(image) + curved
    found = direction.dot(model.product(direction))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_products_are_symmetric():
    residual = residual_of(world(GRAY))
    local = generator(3, "pair")
    a, b, point = (
        torch.rand(residual.numbers, generator=local, dtype=EIGHT_BYTES)
        for _ in range(3)
    )
    model = residual.linearise(point)
    left, right = a.dot(model.product(b)), b.dot(model.product(a))
    assert left.item() == pytest.approx(right.item(), rel=1e-9)


def test_noise_of_unknown_scale_is_put_at_its_likeliest_scale():
    # Φ = min over s of ½‖r‖²/s² + P log s, less the constant P/2.
    residual = normal(50, key=5) * 0.03
    scales = torch.logspace(-4, 1, 20_000, dtype=EIGHT_BYTES)
    values = 0.5 * residual.dot(residual) / scales**2 + 40 * scales.log()
    found = profile_objective(residual, 40, 2.0)
    assert found.item() == pytest.approx(float(values.min()) - 20 + 2, abs=1e-2)


def test_the_slope_of_the_profile_objective_equals_finite_differences():
    made = world(GRAY, defenses=(exhume.defense("gaussian-noise", std=0.1),))
    residual = replace(residual_of(made), scale_known=False)
    point, direction = normal(2, residual.numbers, key=6)
    step = 1e-5
    ends = [residual.objective(point + t * direction) for t in (step, -step)]
    slope = residual.linearise(point).gradient.dot(direction).item()
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_void_coordinates_are_no_degrees_of_freedom():
    # Nine tenths are void: counted in, they would excuse a residual three times larger.
    made = world(
        GRAY,
        defenses=(
            exhume.defense("pruning", ratio=0.9, kind="random"),
            exhume.defense("gaussian-noise", std=1e-3),
        ),
    )
    residual = residual_of(made, prior=False)
    kept = sum(int(m.sum()) for m in residual.law.mask.values())
    assert (
        residual.freedom
        == kept
        < 0.11 * sum(t.numel() for t in residual.observed.values())
    )
    truth = point_of(residual, made.batch.inputs)
    assert residual.fitted(truth)
    wrong = replace(
        residual, weights={n: 3**0.5 * w for n, w in residual.weights.items()}
    )
    assert not wrong.fitted(truth)


def test_an_affine_problem_is_solved_exactly_in_few_steps():
    # With the squared loss of a linear model in its bias alone, F is affine in x: the
    # posterior is Gaussian and its mode has a closed form.
    spec = exhume.EventSpec.vector(5)
    net = torch.nn.Linear(5, 4)
    with torch.no_grad():
        local = generator(4, "weights")
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=local))
    net.weight.requires_grad_(requires_grad=False)
    task = exhume.Task(net, loss="mse").to(EIGHT_BYTES)
    draws = torch.randn(40, 5, generator=local, dtype=EIGHT_BYTES)
    public = exhume.Batch(draws, torch.zeros(40, 4, dtype=EIGHT_BYTES), spec)
    prior = exhume.prior("gaussian").fit(public, task)
    truth = torch.randn(1, 5, generator=local, dtype=EIGHT_BYTES)
    batch = exhume.Batch(truth, torch.zeros(1, 4, dtype=EIGHT_BYTES), spec)
    std = 0.3
    noise = exhume.defense("gaussian-noise", std=std)
    made = exhume.World(
        task, batch, exhume.Mechanism(Gradient(), (noise,)), None, prior
    )
    problem = problem_of(made)
    # F(x) = (2/4)(Wx + b)
    slope = 0.5 * task.parameters()["bias"].new_tensor(net.weight.double().numpy())
    offset = 0.5 * task.parameters()["bias"].detach()
    precision = slope.T @ slope / std**2 + prior.information()
    pull = slope.T @ (problem.observed["bias"] - offset) / std**2
    pull = pull + prior.information() @ prior.mean()
    mode = torch.linalg.solve(precision, pull)
    answer = exhume.attack("gauss-newton")(problem)
    assert torch.allclose(answer.inputs[0], mode, atol=1e-6)


@pytest.mark.parametrize("spec", [GRAY, COLOUR, VECTOR], ids=repr)
def test_a_noiseless_example_is_recovered_to_rounding(spec):
    made = world(spec)
    answer = exhume.attack("gauss-newton")(problem_of(made))
    error = (answer.inputs - made.batch.inputs).square().mean().item()
    assert error < 1e-18


@pytest.mark.parametrize("threat", ["labels-known", "data-enhanced"])
def test_a_batch_is_recovered_with_and_without_labels(threat):
    made = world(GRAY, size=2, labels=[1, 4])
    attack = exhume.attack("gauss-newton")
    answer = attack(problem_of(made, threat=threat))
    scores = exhume.score(answer, made.batch)
    assert max(scores["mse"]) < 1e-12
    assert scores["label-accuracy"] == (1.0, 1.0)


@pytest.mark.parametrize(("outputs", "size"), [(1, 1), (3, 2)])
def test_real_targets_that_are_not_known_are_optimised_as_real_numbers(outputs, size):
    net = smooth_mlp(VECTOR, outputs).to(EIGHT_BYTES)
    y = normal(size, outputs, key=7).squeeze(-1)
    batch = exhume.Batch(normal(size, VECTOR.dimension, key=8), y, VECTOR)
    task = exhume.Task(net, loss="mse")
    made = exhume.World(task, batch, exhume.Mechanism(Gradient()))
    answer = exhume.attack("gauss-newton")(problem_of(made, threat="parameter-aware"))
    assert max(exhume.score(answer, batch).mse) < 1e-12
    found = answer.targets.flatten().sort().values
    assert torch.allclose(found, y.flatten().sort().values, atol=1e-6)


@pytest.mark.parametrize("max_norm", [1e3, 0.05], ids=["inactive", "active"])
def test_noise_that_was_clipped_is_not_believed_to_be_as_large_as_declared(max_norm):
    # Clipping scales signal and noise alike, so it costs the attacker next to nothing.
    noise = exhume.defense("gaussian-noise", std=0.01)
    clip = exhume.defense("clipping", max_norm=max_norm)
    errors = {}
    for defenses in ((noise,), (noise, clip)):
        made = world(GRAY, defenses=defenses, key=3)
        answer = exhume.attack("gauss-newton")(problem_of(made))
        errors[len(defenses)] = (answer.inputs - made.batch.inputs).square().mean()
    assert errors[2] < 1.5 * errors[1]


def test_joint_labels_are_returned_as_optimised_and_score_as_reported():
    made = world(GRAY, labels=[3])
    problem = problem_of(made, threat="data-enhanced")
    attack = exhume.attack("gauss-newton", labels="joint")
    answer = attack(problem)
    assert answer.targets.tolist() == [3]
    again = attack.objective(problem, answer.inputs, answer.targets)
    assert again == pytest.approx(answer.objective, rel=1e-9)


def test_noise_is_weighed_against_the_prior():
    # With overwhelming noise the mode is the prior mean; without a prior it is not.
    made = world(GRAY, defenses=(exhume.defense("gaussian-noise", std=1e4),))
    problem = problem_of(made)
    answer = exhume.attack("gauss-newton")(problem)
    assert torch.allclose(answer.inputs[0], made.prior.mean(), atol=1e-3)
    alone = exhume.attack("gauss-newton", prior=False)(problem)
    assert (alone.inputs[0] - made.prior.mean()).abs().max() > 0.1


@pytest.mark.parametrize(
    "defense",
    [
        {"name": "clipping", "max_norm": 0.01},
        {"name": "pruning", "ratio": 0.5, "kind": "magnitude"},
        {"name": "pruning", "ratio": 0.5, "kind": "random"},
    ],
    ids=["clipping", "magnitude", "random"],
)
def test_a_known_deterministic_defense_is_inverted(defense):
    name = defense["name"]
    options = {k: v for k, v in defense.items() if k != "name"}
    made = world(GRAY, defenses=(exhume.defense(name, **options),))
    answer = exhume.attack("gauss-newton")(problem_of(made))
    assert answer.adaptive
    assert (answer.inputs - made.batch.inputs).square().mean() < 1e-10


def test_the_objective_at_the_truth_is_the_noise_alone():
    std = 0.05
    made = world(GRAY, defenses=(exhume.defense("gaussian-noise", std=std),))
    problem = problem_of(made)
    attack = exhume.attack("gauss-newton", prior=False)
    value = attack.objective(problem, made.batch.inputs, made.batch.targets)
    count = sum(t.numel() for t in problem.observed.values())
    # 2Φ is χ² with P degrees of freedom.
    assert abs(2 * value - count) < 5 * math.sqrt(2 * count)


def test_rounding_weights_make_tensors_count_alike():
    tree = {
        "big": torch.full((4,), 1e2),
        "small": torch.full((9,), 1e-2),
        "zero": torch.zeros(2),
    }
    weights = rounding_weights(tree, EIGHT_BYTES)
    scaled = {n: float((weights[n] * tree[n].double()).square().mean()) for n in tree}
    assert scaled["big"] == pytest.approx(scaled["small"], rel=1e-5)
    assert weights["zero"] == pytest.approx(float(weights["big"]), rel=1e-5)


def test_rounding_of_a_zero_tensor_does_not_set_its_own_scale():
    # Rounding leaves about 1e-17 of an exact zero beside tensors of size one.
    tree = {"weight": torch.ones(4).double(), "bias": torch.full((4,), 1e-17).double()}
    weights = rounding_weights(tree, EIGHT_BYTES)
    assert weights["bias"] == pytest.approx(float(weights["weight"]))


@pytest.mark.parametrize("size", [1, 2])
def test_a_bias_before_batch_norm_does_not_hide_the_rest(size):
    # Its gradient is zero but for rounding, since BatchNorm removes every mean.
    made = make_world(
        GRAY,
        labels=tuple(range(size)),
        model=convolutional(GRAY, norm=True),
        mode="train",
        dtype=EIGHT_BYTES,
    )
    problem = problem_of(made)
    bias, weight = problem.observed["0.bias"], problem.observed["0.weight"]
    assert bias.abs().max() < 1e-12 * weight.abs().max()
    answer = exhume.attack("gauss-newton", restarts=1)(problem)
    assert answer.outcome is Outcome.TOLERANCE


def test_release_weights_use_declared_noise_and_rounding_elsewhere():
    tree = {"a": torch.ones(3), "b": torch.ones(3)}
    law = Law(variance={"a": torch.tensor(0.04)})
    weights = release_weights(tree, law, EIGHT_BYTES)
    assert torch.allclose(weights["a"], torch.full((3,), 5.0, dtype=EIGHT_BYTES))
    assert torch.equal(weights["b"], rounding_weights(tree, EIGHT_BYTES)["b"])


def test_a_softened_problem_keeps_its_minimum_and_lowers_its_confidence():
    residual = residual_of(world(GRAY), prior=False)
    made = world(GRAY)
    truth = point_of(residual, made.batch.inputs)
    blurred = residual.softened(0.1)
    assert blurred.objective(truth) <= residual.objective(truth) + 1e-12
    other = truth + 0.1
    assert blurred.objective(other) < 1e-6 * residual.objective(other)


def test_steps_never_raise_the_objective_and_stay_in_the_box():
    residual = residual_of(world(COLOUR, size=2))
    limits = Limits(15, 10**6, math.inf, 50, 0.0, 0.0)
    start = torch.full((residual.numbers,), 0.5, dtype=EIGHT_BYTES)
    descent = levenberg_marquardt(
        residual, start, limits, Stopwatch(), lambda u: u.clamp(0, 1)
    )
    values = [value for _, _, value in descent.trace]
    assert values == sorted(values, reverse=True)
    assert descent.point.min() >= 0
    assert descent.point.max() <= 1
    assert residual.objective(descent.point) == descent.objective


def test_budgets_end_the_run():
    made = world(COLOUR, size=4, labels=[0, 0, 0, 0])
    problem = problem_of(made)
    short = exhume.attack("gauss-newton", iterations=1, restarts=1)(problem)
    assert short.outcome is Outcome.ITERATION_LIMIT
    timed = exhume.attack("gauss-newton", seconds=1e-6)(problem)
    assert timed.outcome is Outcome.TIME_LIMIT
    few = exhume.attack("gauss-newton", evaluations=50, inner_iterations=10)(problem)
    # One more step than the budget at most.
    assert few.cost.evaluations <= 50 + 2 * 10 + 10


def test_restarts_keep_the_smallest_objective():
    made = world(COLOUR, size=3, labels=[0, 0, 0], key=5)
    problem = problem_of(made)
    options = {"iterations": 4, "inner_iterations": 20}
    one = exhume.attack("gauss-newton", restarts=1, **options)(problem, 7)
    many = exhume.attack("gauss-newton", restarts=3, **options)(problem, 7)
    assert many.objective <= one.objective
    assert {point.restart for point in many.trace} == {0, 1, 2}


def test_an_explicit_start_is_used():
    made = world(GRAY)
    problem = problem_of(made)
    attack = exhume.attack("gauss-newton", iterations=1, restarts=1)
    start = smooth(GRAY, 1, 99).double()
    answer = attack.run_from(problem, 0, start)
    expected = attack.objective(problem, start, made.batch.targets)
    assert answer.trace[0].objective == pytest.approx(expected, rel=1e-9)


def test_float32_recovers_less_than_float64_but_recovers():
    made = world(GRAY, dtype=torch.float32)
    problem = problem_of(made)
    errors = [
        (exhume.attack("gauss-newton", precision=p)(problem).inputs - made.batch.inputs)
        .square()
        .mean()
        .item()
        for p in ("float32", "float64")
    ]
    assert max(errors) < 1e-8


def test_a_coarse_computation_is_done_when_it_is_fitted_to_its_own_rounding():
    problem = problem_of(world(GRAY))
    answer = exhume.attack("gauss-newton", precision="float32")(problem)
    assert answer.outcome is Outcome.TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"iterations": 0}, {"restarts": 0}, {"seconds": 0.0}, {"evaluations": 0}],
)
def test_budgets_must_be_positive(options):
    with pytest.raises(exhume.errors.InvalidInput, match=next(iter(options))):
        exhume.attack("gauss-newton", **options)


def test_an_unknown_start_is_refused_before_anything_runs():
    expected = "start: .*'prior-mean'.*got 'zeros'"
    with pytest.raises(exhume.errors.InvalidInput, match=expected):
        exhume.attack("gauss-newton", start="zeros")


def test_the_prior_fills_in_what_scarce_observations_leave_open():
    made = world(GRAY, defenses=(exhume.defense("pruning", ratio=0.98),), key=3)
    problem = problem_of(made)
    assert residual_of(made).scarce
    assert not residual_of(world(GRAY)).scarce
    answer = exhume.attack("gauss-newton")(problem)
    alone = exhume.attack("gauss-newton", prior=False)(problem)
    guess = exhume.attack("prior-mean")(problem)
    errors = [exhume.score(a, made.batch).mse[0] for a in (answer, alone, guess)]
    assert errors[0] < 0.8 * min(errors[1:])


def test_an_observation_that_is_not_explained_is_said():
    made = world(GRAY)
    problem = problem_of(made)
    assert exhume.attack("gauss-newton")(problem).notes == ()
    stranger = world(GRAY, key=77).task
    wrong = replace(problem, task=stranger)
    answer = exhume.attack("gauss-newton", iterations=5, restarts=1)(wrong)
    assert "does not explain" in answer.notes[0]
