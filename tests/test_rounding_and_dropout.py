"""Quantisation, dropout and pruning by tensor; scalings of the bound; every attack."""

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import exhume
from conformance.tiny import TASK, TREE
from exhume import Mechanism, NotApplicable, Task, registry
from exhume.defenses._rounding import (
    grid_step,
    round_to_grid,
    round_up_or_down,
    rounding_variance,
    scaled_sign,
    soft_sign,
)
from exhume.defenses.dropout import Dropout, DropUnits, unit_factors
from exhume.defenses.pruning import KeepLargestOfEach, Pruning, magnitude_mask
from exhume.defenses.quantisation import Quantisation
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.observations.shared import SharedObservation
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.observation import Candidate
from toys import GRAY, VECTOR, convolutional, make_world, mlp, reveal, smooth_mlp

# A step of the grid, 2⁻¹⁵ of the largest, must be a normal number: a subnormal one has
# no relative accuracy.
vectors = st.lists(
    st.floats(-1e6, 1e6).map(lambda v: v if abs(v) > 1e-300 else 0.0),
    min_size=1,
    max_size=20,
).map(lambda values: torch.tensor(values, dtype=torch.float64))


def released(defense, tree=TREE, key=1):
    return defense.apply(tree, defense.calibrate(TASK, None, 0), key)


# --- quantisation --------------------------------------------------------------------


@given(vectors, st.integers(2, 16))
@settings(max_examples=100, deadline=None)
def test_rounding_is_within_half_a_step_and_keeps_the_largest(values, bits):
    step = grid_step(values, bits)
    rounded = round_to_grid(values, step)
    assert float((rounded - values).abs().max()) <= float(step) * (0.5 + 1e-9)
    largest = values.abs().argmax()
    torch.testing.assert_close(rounded[largest], values[largest])
    assert not bool(rounded[values == 0].any())
    noisy = round_up_or_down(values, step, generator(0))
    assert float((noisy - values).abs().max()) <= float(step) * (1 + 1e-9)
    if float(step) > 1e-300:
        levels = noisy / step
        torch.testing.assert_close(levels, levels.round())
        assert float(levels.abs().max()) < 2 ** (bits - 1) - 0.5


def test_stochastic_rounding_is_unbiased_with_the_variance_of_two_points():
    values = torch.tensor([-1.0, -0.6, 0.0, 0.1, 0.25, 0.5, 0.9]).double()
    step = grid_step(values, 3)
    assert float(step) == pytest.approx(1 / 3)
    draws = torch.stack(
        [round_up_or_down(values, step, generator(0, i)) for i in range(4000)]
    )
    share = (values / step) % 1
    variance = step**2 * share * (1 - share)
    assert bool(
        ((draws.mean(0) - values).abs() <= 5 * (variance / 4000).sqrt() + 1e-12).all()
    )
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=1e-6)


@pytest.mark.parametrize("stochastic", [False, True])
def test_rounding_variance_is_that_of_entries_anywhere_in_their_cells(stochastic):
    values = torch.rand(50_000, generator=generator(3), dtype=torch.float64) - 0.5
    step = torch.tensor(0.01).double()
    rounded = round_to_grid(values, step)
    if stochastic:
        rounded = round_up_or_down(values, step, generator(4))
    expected = float(rounding_variance(step, stochastic=stochastic))
    assert float((rounded - values).square().mean()) == pytest.approx(
        expected, rel=0.03
    )


@given(vectors)
@settings(max_examples=100, deadline=None)
def test_signs_carry_one_magnitude_per_tensor(values):
    assert torch.equal(scaled_sign(values, unit=True), values.sign())
    scaled = scaled_sign(values, unit=False)
    torch.testing.assert_close(scaled, values.abs().mean() * values.sign())
    soft = soft_sign(values, torch.tensor(0.3).double(), unit=True)
    assert bool((soft * values >= 0).all())
    assert float(soft.abs().max()) <= 1


def test_soft_sign_tends_to_the_sign_and_has_the_slope_of_its_width():
    values = torch.tensor([-2.0, 0.3, 0.0, 1.0]).double()
    for unit in (True, False):
        sharp = soft_sign(values, torch.tensor(1e-4).double(), unit=unit)
        torch.testing.assert_close(sharp, scaled_sign(values, unit=unit))
    zero = torch.zeros(3).double().requires_grad_()
    soft_sign(zero, torch.tensor(0.25).double(), unit=True).sum().backward()
    assert zero.grad is not None
    assert zero.grad.tolist() == [4, 4, 4]


@pytest.mark.parametrize("kind", ["sign", "int8"])
def test_the_exact_law_is_the_release_and_has_no_bound(kind):
    defense = Quantisation(kind=kind)
    world = make_world(GRAY, model=smooth_mlp(GRAY), defenses=(defense,))
    noisy = Mechanism(Gradient(), [defense, exhume.defense("gaussian-noise", std=0.1)])
    density = GaussianDensity.from_covariance(
        torch.zeros(64).double(), torch.eye(64).double()
    )
    for mechanism in (world.mechanism, noisy):
        other = type(world)(world.task, world.batch, mechanism, None, density)
        bound = exhume.bound("bayesian-cramer-rao", draws=2)(other)
        assert isinstance(bound, NotApplicable)
        assert "jump" in bound.reason


def test_the_surrogate_has_the_size_of_the_rounding_and_follows_later_defenses():
    defense, noise = Quantisation(kind="int8"), exhume.defense("laplace-noise", std=0.1)
    mask = Pruning(ratio=0.5, kind="random")
    mechanism = Mechanism(Gradient(), [defense])
    plans = mechanism.calibrate(TASK, None, 0)
    values = mechanism.release(TREE, plans, 0)
    surrogate = mechanism.law(plans, values).for_descent
    for n, t in TREE.items():
        step = float(t.abs().max()) / 127
        assert float(surrogate.variance[n]) == pytest.approx(step**2 / 12)
        assert torch.equal(surrogate.mean(TREE)[n], t)
    stack = Mechanism(Gradient(), [mask, defense, noise])
    plans = stack.calibrate(TASK, None, 0)
    law = stack.law(plans, stack.release(TREE, plans, 0))
    assert law.irregular is not None
    soft = law.for_descent
    assert soft.irregular is None
    assert soft.family == "laplace"
    assert [float(v) for v in soft.variance.values()] == pytest.approx([0.01] * 4)
    assert all(torch.equal(soft.mask[n], plans[0].arrays[n]) for n in TREE)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"kind": "int8"}, 1e-4),
        ({"kind": "stochastic"}, 1e-4),
        ({"kind": "stochastic", "bits": 3}, 0.02),
        ({"kind": "sign"}, 0.1),
        ({"kind": "sign", "scale": "one"}, 0.15),
    ],
)
def test_gauss_newton_descends_on_the_surrogate(options, share):
    """The exact law is flat: without the surrogate the start does not move."""
    defense = Quantisation(**options)
    net = smooth_mlp(VECTOR, width=64)
    world = make_world(VECTOR, model=net, defenses=(defense,), dtype=torch.float64)
    problem = reveal(world)

    def error(attack, told):
        guess = attack(told, 0).inputs
        return float((guess - world.batch.inputs).square().mean())

    chance = error(exhume.attack("prior-mean"), problem)
    attack = exhume.attack("gauss-newton", restarts=1, iterations=40)
    found = error(attack, problem)
    assert found < share * chance
    if options["kind"] != "stochastic":
        flat = replace(problem, law=replace(problem.law, surrogate=None))
        assert error(attack, flat) > 5 * found


# --- dropout -------------------------------------------------------------------------


def test_factors_keep_the_mean_and_are_fresh_for_each_key():
    uniform = torch.tensor([0.0, 0.29, 0.3, 0.99]).double()
    assert unit_factors(uniform, 0.3, rescale=False).tolist() == [0, 0, 1, 1]
    assert unit_factors(uniform, 0.3, rescale=True).tolist() == [
        0, 0, pytest.approx(1 / 0.7), pytest.approx(1 / 0.7),
    ]  # fmt: skip
    defense = Dropout(ratio=0.3)
    drawn = torch.stack(
        [defense.calibrate(TASK, None, key).arrays["1"] for key in range(3000)]
    )
    limit = 5 * (0.3 / 0.7 / 3000) ** 0.5
    assert float((drawn.mean(0) - 1).abs().max()) < limit


def test_the_release_shows_the_mask_and_the_attacker_has_it():
    net = convolutional(GRAY)
    world = make_world(GRAY, model=net, defenses=(Dropout(ratio=0.5),), key=2)
    observation = world.observe(0)
    (plan,) = observation.plans
    kept = plan.arrays["1"][:6] > 0
    assert 0 < int(kept.sum()) < 6
    gradient = observation.values["0.weight"].flatten(1)
    assert torch.equal(gradient.abs().amax(1) > 0, kept)
    problem = reveal(world)
    candidate = Candidate(world.batch.inputs, world.batch.targets)
    model = problem.observation_model
    for n, t in model.forward(problem.task, candidate).items():
        torch.testing.assert_close(observation.values[n], t)


def test_names_of_parameters_stay_and_the_task_survives_copies():
    net = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2))
    task = Task(net)
    defense = Dropout(ratio=0.5)
    plan = defense.calibrate(task, None, 1)
    dropped = defense.transform_task(task, plan)
    assert list(dropped.parameters()) == list(task.parameters())
    x = torch.randn(5, 4, generator=generator(0))
    expected = dropped.predict(x, dropped.parameters())
    assert not torch.allclose(expected, task.predict(x, task.parameters()))
    for copy in (pickle.loads(pickle.dumps(dropped)), dropped.to(torch.float64)):
        again = copy.predict(x.to(copy.dtype), copy.parameters())
        torch.testing.assert_close(again.float(), expected)


def test_where_dropout_cannot_act_it_says_so():
    functional = Task(nn.Linear(4, 2))
    with pytest.raises(InvalidInput, match="no activation module"):
        Dropout(ratio=0.5).calibrate(functional, None, 0)
    with pytest.raises(InvalidInput, match=r"'head\.\*' in `layers` matches no module"):
        Dropout(ratio=0.5, layers=("head.*",)).calibrate(TASK, None, 0)
    chosen = Dropout(ratio=0.5, layers=("0",)).calibrate(TASK, None, 0)
    assert list(chosen.arrays) == ["0"]
    layer = nn.Flatten()
    layer.register_buffer("dropout_factors", torch.ones(3))
    with pytest.raises(InvalidInput, match=r"'1' has shape \[2, 8\].*at most 3 units"):
        DropUnits("1")(layer, (), torch.ones(2, 8))


# --- pruning by tensor ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["magnitude", "random"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_each_tensor_loses_its_own_share(kind, ratio):
    tied = {n: torch.ones_like(t) for n, t in TREE.items()}
    defense = Pruning(ratio=ratio, kind=kind, per_tensor=True)
    for tree in (TREE, tied):
        for n, t in released(defense, tree).items():
            assert int((t == 0).sum()) == int(ratio * t.numel())
            if kind == "magnitude":
                mask = magnitude_mask(tree[n].flatten(), int(ratio * t.numel()))
                assert torch.equal(t.flatten(), tree[n].flatten() * mask)


def test_the_law_prunes_each_tensor_where_later_noise_hides_the_zeros():
    noise = exhume.defense("gaussian-noise", std=0.1)
    mechanism = Mechanism(Gradient(), [Pruning(ratio=0.5, per_tensor=True), noise])
    law = mechanism.law(mechanism.calibrate(TASK, None, 0))
    removed = {n: int(0.5 * t.numel()) for n, t in TREE.items()}
    for n, t in KeepLargestOfEach(removed)(TREE).items():
        assert torch.equal(law.mean(TREE)[n], t)


# --- how the bound scales ------------------------------------------------------------


def test_the_bound_scales_as_theory_says():
    path = Path(__file__).parent.parent / "benchmarks" / "scalings.py"
    spec = importlib.util.spec_from_file_location("scalings", path)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    widths = (500, 2000, 8000)
    errors = [bench.typical(m, 20) for m in widths]
    assert bench.slope(widths, errors) == pytest.approx(-0.5, abs=0.05)
    for name, options, power in (
        ("pruning", {"kind": "random"}, -0.5),
        ("dropout", {"rescale": False}, -0.5),
        ("dropout", {"rescale": True}, 0.5),
    ):
        defense = exhume.defense(name, ratio=0.7, **options)
        factor = bench.typical(8000, 20, (defense,)) / errors[-1]
        assert factor == pytest.approx(0.3**power, rel=0.05), name


# --- dead units ---------------------------------------------------------------------

OURS = (
    "coordinate-clipping",
    "dp-sgd",
    "dropout",
    "example-clipping",
    "laplace-noise",
    "pruning",
    "quantisation",
)


@pytest.mark.parametrize("defense", OURS)
def test_exact_zeros_of_a_relu_network_stay_harmless(defense):
    """Dead units give rows of exact zeros, in the gradient of a whole batch too."""
    net = mlp(GRAY)
    with torch.no_grad():
        net[1].bias[:12] = -100.0
    for made in registry.find("defense", defense).examples():
        world = make_world(GRAY, labels=(3, 0), model=net, defenses=(made,))
        assert not bool(world.task.gradient(*_pair(world))["1.weight"][:12].any())
        observation = world.observe(0)
        law = world.mechanism.law(observation.plans, observation.values)
        induced = world.mechanism.induced(world.task, observation.plans)
        mean = law.mean(induced.model.forward(induced.task, Candidate(*_pair(world))))
        for n, t in observation.values.items():
            assert bool(t.isfinite().all())
            assert bool(mean[n].isfinite().all())
            if not made.adds_noise:
                torch.testing.assert_close(t, mean[n])
        if not made.adds_noise:
            assert not bool(observation.values["1.weight"][:12].any())


def _pair(world):
    return world.batch.inputs, world.batch.targets


def test_a_shared_observation_has_the_model_that_the_client_really_ran():
    net, drop = smooth_mlp(GRAY), Dropout(ratio=0.5)
    clip = exhume.defense("example-clipping", max_norm=1e-3)
    world = make_world(GRAY, labels=(3, 0), model=net, defenses=(drop, clip))
    observation = world.observe(0)
    shared = SharedObservation(
        values=observation.values,
        spec=GRAY,
        mode="eval",
        defenses=world.mechanism.defenses,
        plans=observation.plans,
    )
    problem = shared.problem(net)
    again = problem.observation_model.forward(problem.task, Candidate(*_pair(world)))
    for n, t in observation.values.items():
        torch.testing.assert_close(again[n], t)
