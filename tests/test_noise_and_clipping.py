"""Laplace noise, clipping by example and by coordinate, DP-SGD: against oracles."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import exhume
from exhume import Batch, EventSpec, Mechanism, NotApplicable, Task, ThreatModel, World
from exhume.attacks.engine.discrepancy import laplace_likelihood, make_discrepancy
from exhume.attacks.engine.map_residual import laplace_objective
from exhume.defenses._clip_each import ClipEach, sum_clipped
from exhume.defenses.clipping import ClipNorm
from exhume.defenses.coordinate_clipping import ClampEach, clamp_coordinates
from exhume.defenses.dp_sgd import DpSgd, dp_sgd_std
from exhume.defenses.laplace_noise import LaplaceNoise, add_laplace_noise
from exhume.errors import InvalidInput
from exhume.keys import fold, generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.observation import Candidate, ObservationModel
from exhume.problem.release import Observation
from exhume.problem.tree import Tree, flatten, norm, scale

DIMENSION, ROWS = 3, 24


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(key, "n"), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class LinearForward(ObservationModel):
    """F(x) = A x, cut into the shape of the weight: a problem with closed forms."""

    matrix: Tensor

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        values = self.matrix @ candidate.inputs.flatten()
        return {n: values.reshape(p.shape) for n, p in task.parameters().items()}

    forward_func = forward


def linear_world(defense, width: float = 3.0) -> World:
    """x ~ N(0, width² I), O = A x + noise with 72 observations of 3 unknowns."""
    task = Task(nn.Linear(DIMENSION, ROWS, bias=False).double())
    matrix = normal(ROWS * DIMENSION, DIMENSION, key=1)
    prior = GaussianDensity.from_covariance(
        torch.zeros(DIMENSION).double(), width**2 * torch.eye(DIMENSION).double()
    )
    batch = Batch(normal(1, 3, key=2), torch.tensor([0]), EventSpec.vector(DIMENSION))
    mechanism = Mechanism(LinearForward(matrix), [defense])
    return World(task, batch, mechanism, None, prior)


# --- Laplace noise -------------------------------------------------------------------


def test_laplace_noise_has_the_density_that_its_formula_says():
    draws = add_laplace_noise(torch.zeros(40_000).double(), 0.5, generator(0, "w"))
    rate = 2**0.5 / 0.5
    for quantile in (0.1, 0.5, 2.0):
        expected = float(torch.exp(torch.tensor(-quantile)))
        share = float((draws.abs() * rate > quantile).double().mean())
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 40_000) ** 0.5
    assert abs(float((draws > 0).double().mean()) - 0.5) < 4 * 0.5 / 200
    assert (
        add_laplace_noise(torch.ones(3).half(), 1.0, generator(0)).dtype == torch.half
    )


@pytest.mark.parametrize("std", [0.1, 1.0, 5.0])
def test_bayesian_bound_of_a_linear_model_is_the_closed_form(std):
    world = linear_world(LaplaceNoise(std=std))
    bound = exhume.bound("bayesian-cramer-rao", draws=2)(world)
    a = world.mechanism.observation.matrix
    information = 2 / std**2 * a.T @ a + torch.eye(DIMENSION).double() / 9
    closed = float(torch.linalg.inv(information).trace())
    assert bound.total == pytest.approx(closed, rel=1e-9)
    gaussian = linear_world(exhume.defense("gaussian-noise", std=std / 2**0.5))
    same = exhume.bound("bayesian-cramer-rao", draws=2)(gaussian)
    assert same.total == pytest.approx(closed, rel=1e-9)


def test_attacks_use_the_likelihood_and_none_is_below_the_bound():
    """Least squares throws away half of what Laplace noise tells; these do not."""
    world = linear_world(LaplaceNoise(std=1.0))
    matrix, prior = world.mechanism.observation.matrix, world.prior
    bound = exhume.bound("bayesian-cramer-rao", draws=2)(world)
    plans = world.mechanism.calibrate(world.task, None, 0)
    attacks = {
        "gauss-newton": exhume.attack("gauss-newton", restarts=1),
        "dlg": exhume.attack("dlg", iterations=10),
    }
    errors: dict[str, list[float]] = {name: [] for name in (*attacks, "squares")}
    for draw in range(60):
        x = prior.sample(1, fold(0, "truth", draw))
        truth = World(
            world.task,
            Batch(x, world.batch.targets, world.batch.spec),
            world.mechanism,
            None,
            prior,
        )
        values = world.mechanism.sample(world.task, truth.batch, draw, plans=plans)
        seen = Observation(values.values, {}, plans, draw)
        problem = ThreatModel("labels-known").reveal(truth, seen)
        for name, attack in attacks.items():
            guess = attack(problem, draw).inputs
            errors[name].append(float((guess - x).square().sum()))
        flat = flatten(dict(seen.values))
        squares = torch.linalg.lstsq(matrix, flat.unsqueeze(1)).solution.flatten()
        errors["squares"].append(float((squares - x.flatten()).square().sum()))
    means = {n: torch.tensor(e).mean() for n, e in errors.items()}
    for name in attacks:
        spread = torch.tensor(errors[name]).std() / 60**0.5
        assert means[name] >= bound.total - 3 * spread, name
        assert means[name] < 0.8 * means["squares"], name


def test_first_order_attacks_minimise_the_one_norm():
    world = linear_world(LaplaceNoise(std=0.5))
    plans = world.mechanism.calibrate(world.task, None, 0)
    law = world.mechanism.law(plans)
    seen = world.observe(0).values
    other = {n: t + 1 for n, t in seen.items()}
    distance = make_discrepancy("euclidean", seen, law, torch.float64)
    expected = laplace_likelihood(scale(2.0, other), scale(2.0, seen))
    assert float(distance(other)) == pytest.approx(float(expected))
    assert float(expected) == pytest.approx(2**0.5 * 2 * 72)


# --- clipping of each example --------------------------------------------------------


def small_task(*layers: nn.Module) -> Task:
    net = nn.Sequential(nn.Linear(4, 5), *layers, nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, key=i))
    return Task(net)


TASK = small_task()
X = torch.cat([normal(3, 4, key=9), 30 * normal(1, 4, key=10)])
Y = torch.tensor([0, 1, 1, 0])


def by_hand(task: Task, limit: float, names=None) -> Tree:
    """Clip one example after the other, in plain arithmetic."""
    total: Tree = {}
    for i in range(len(X)):
        g = task.gradient(X[i : i + 1], Y[i : i + 1])
        covered = [g[n] for n in (names or g)]
        length = sum(float((t**2).sum()) for t in covered) ** 0.5
        for n, t in g.items():
            factor = min(1.0, limit / length) if names is None or n in names else 1.0
            total[n] = total.get(n, 0) + factor * t
    return total


@pytest.mark.parametrize("names", [None, ("0.weight", "2.bias")])
def test_each_example_is_clipped_before_the_mean(names):
    defense = exhume.defense(
        "example-clipping", max_norm=0.7, **({} if names is None else {"only": names})
    )
    mechanism = Mechanism(Gradient(), [defense])
    released = mechanism.sample(TASK, Batch(X, Y, EventSpec.vector(4)), key=0).values
    lengths = [float(norm(TASK.gradient(X[i : i + 1], Y[i : i + 1]))) for i in range(4)]
    assert min(lengths) < 0.7 < max(lengths)
    for n, t in by_hand(TASK, 0.7, names).items():
        torch.testing.assert_close(released[n], t / 4)
    halved = exhume.defense("example-clipping", max_norm=0.7, batch_size=8)
    if names is None:
        batch = Batch(X, Y, EventSpec.vector(4))
        smaller = Mechanism(Gradient(), [halved]).sample(TASK, batch, key=0).values
        for n in released:
            torch.testing.assert_close(2 * smaller[n], released[n])


def test_of_one_example_it_is_the_clipping_of_the_update():
    g = TASK.gradient(X[:1], Y[:1])
    limit = 0.5 * float(norm(g))
    each = sum_clipped({n: t.unsqueeze(0) for n, t in g.items()}, limit, tuple(g))
    for n, t in ClipNorm(limit, tuple(g))(g).items():
        torch.testing.assert_close(each[n], t)


def test_local_steps_can_clip_at_weights_that_moved():
    moved = small_task()
    with torch.no_grad():
        for p in moved.parameters().values():
            p.mul_(1.5)
    weights = {n: p.detach() for n, p in moved.parameters().items()}
    model = ClipEach(Gradient(), 0.7, tuple(weights))
    expected = by_hand(moved, 0.7)
    for n, t in model.forward_at(TASK, Candidate(X, Y), weights).items():
        torch.testing.assert_close(t, expected[n] / 4)
    plain = Gradient().forward_at(TASK, Candidate(X, Y), weights)
    for n, t in moved.gradient(X, Y).items():
        torch.testing.assert_close(plain[n], t)


class Branching(nn.Module):
    """Its control flow depends on the data, which vmap refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else 2 * x


def test_a_layer_that_does_not_vectorise_is_taken_example_by_example():
    task = small_task(Branching())
    model = ClipEach(Gradient(), 0.7, tuple(task.parameters()))
    expected = by_hand(task, 0.7)
    for forward in (model.forward, model.forward_func):
        for n, t in forward(task, Candidate(X, Y)).items():
            torch.testing.assert_close(t, expected[n] / 4)


@pytest.mark.parametrize(
    "defense",
    [
        exhume.defense("example-clipping", max_norm=1.0),
        DpSgd(max_norm=1.0, noise_multiplier=1.0, batch_size=2),
    ],
)
def test_layers_that_mix_examples_are_refused(defense):
    def net(**options):
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, **options)).double()

    mixed = [Task(net(), mode="train"), Task(net(track_running_stats=False))]
    for task in mixed:
        with pytest.raises(InvalidInput, match=r"BatchNorm layer '1' mixes.*GroupNorm"):
            defense.calibrate(task, None, 0)
    defense.calibrate(Task(net()), None, 0)


# --- DP-SGD --------------------------------------------------------------------------


def test_dp_sgd_is_the_clipped_sum_with_noise_over_the_expected_batch_size():
    assert dp_sgd_std(3.0, 0.5, 6) == 0.25
    defense = DpSgd(max_norm=0.7, noise_multiplier=0.1, batch_size=4)
    mechanism = Mechanism(Gradient(), [defense])
    batch = Batch(X, Y, EventSpec.vector(4))
    values = [flatten(mechanism.sample(TASK, batch, k).values) for k in range(400)]
    draws = torch.stack(values) - flatten(by_hand(TASK, 0.7)) / 4
    std = 0.1 * 0.7 / 4
    assert float(draws.mean(0).abs().max()) < 5 * std / 20
    assert float(draws.std()) == pytest.approx(std, rel=4 / (2 * draws.numel()) ** 0.5)


def test_another_batch_size_changes_the_units_and_nothing_else():
    batch = Batch(X, Y, EventSpec.vector(4))
    prior = GaussianDensity.from_covariance(
        torch.zeros(4).double(), torch.eye(4).double()
    )
    bounds, releases, multipliers = [], [], []
    for size in (1, 4, 100):
        defense = DpSgd(max_norm=20.0, noise_multiplier=1.5, batch_size=size)
        mechanism = Mechanism(Gradient(), [defense])
        world = World(TASK, batch, mechanism, None, prior)
        bounds.append(exhume.bound("bayesian-cramer-rao", draws=3)(world).total)
        releases.append(scale(size, world.observe(3).values))
        plans = mechanism.calibrate(TASK, None, 0)
        multipliers.append(mechanism.guarantee(plans).multiplier)
    assert bounds == pytest.approx([bounds[0]] * 3)
    assert multipliers == pytest.approx([1.5] * 3)
    for n in releases[0]:
        torch.testing.assert_close(releases[1][n], releases[0][n])
        torch.testing.assert_close(releases[2][n], releases[0][n])


def test_what_differential_privacy_can_rely_on():
    def multiplier(*defenses) -> float:
        mechanism = Mechanism(Gradient(), defenses)
        return mechanism.guarantee(mechanism.calibrate(TASK, None, 0)).multiplier

    noise, laplace = (exhume.defense(n, std=0.6) for n in NOISES)
    each = exhume.defense("example-clipping", max_norm=2.0, batch_size=10)
    unsized = exhume.defense("example-clipping", max_norm=2.0)
    size = sum(p.numel() for p in TASK.parameters().values())
    assert multiplier(each, noise) == pytest.approx(0.6 * 10 / 2)
    assert multiplier(unsized, noise) == pytest.approx(0.6 / 2)
    assert multiplier(each, laplace) == pytest.approx(0.6 / 2**0.5 / (0.2 * size**0.5))
    assert multiplier(exhume.defense("coordinate-clipping", max_abs=0.1), noise) == (
        pytest.approx(0.6 / (0.1 * size**0.5))
    )
    assert multiplier(noise) == multiplier(laplace) == multiplier(each) == 0
    partly = DpSgd(max_norm=1.0, noise_multiplier=1.0, batch_size=2, only=("0.*",))
    assert multiplier(partly) == 0


NOISES = ("gaussian-noise", "laplace-noise")


def test_examples_come_before_updates():
    noise = exhume.defense("gaussian-noise", std=1.0)
    private = DpSgd(max_norm=1.0, noise_multiplier=1.0, batch_size=2)
    drop = exhume.defense("dropout", ratio=0.5)
    Mechanism(Gradient(), [drop, private, noise])
    for wrong in ([noise, private], [private, drop]):
        with pytest.raises(InvalidInput, match="stages"):
            Mechanism(Gradient(), wrong)


# --- clipping of each coordinate -----------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(1e-6, 1e6))
@settings(max_examples=100, deadline=None)
def test_clamped_entries_show_their_sign_and_the_limit_alone(values, limit):
    tree = {"a": torch.tensor(values, dtype=torch.float64), "b": torch.ones(2) * 1e9}
    clamped = ClampEach(limit, ("a",))(tree)
    assert torch.equal(clamped["b"], tree["b"])
    outside = tree["a"].abs() > limit
    assert torch.equal(clamped["a"][~outside], tree["a"][~outside])
    assert torch.equal(clamped["a"][outside], limit * tree["a"][outside].sign())


def test_clamping_keeps_only_the_information_of_entries_inside():
    point = torch.tensor([0.1, -3.0, 0.5, 2.0]).double().requires_grad_()
    clamp_coordinates(point, 1.0).sum().backward()
    assert point.grad is not None
    assert point.grad.tolist() == [1, 0, 1, 0]
    prior = GaussianDensity.from_covariance(
        torch.zeros(4).double(), 0.01 * torch.eye(4).double()
    )
    batch = Batch(X[:1], Y[:1], EventSpec.vector(4))
    noise = exhume.defense("gaussian-noise", std=0.1)
    bounds = []
    for limit in (1e-3, 0.3, 1e3):
        clamp = exhume.defense("coordinate-clipping", max_abs=limit)
        world = World(TASK, batch, Mechanism(Gradient(), [clamp, noise]), None, prior)
        bound = exhume.bound("bayesian-cramer-rao", draws=8)(world)
        if limit == 1e3:
            bare = World(TASK, batch, Mechanism(Gradient(), [noise]), None, prior)
            expected = exhume.bound("bayesian-cramer-rao", draws=8)(bare).total
            assert bound.total == pytest.approx(expected)
        if not isinstance(bound, NotApplicable):
            bounds.append(bound.total)
    assert len(bounds) >= 2
    assert bounds == sorted(bounds, reverse=True)


def test_noise_that_is_clamped_is_not_gaussian():
    noise = exhume.defense("gaussian-noise", std=0.1)
    clamp = exhume.defense("coordinate-clipping", max_abs=0.3)
    mechanism = Mechanism(Gradient(), [noise, clamp])
    law = mechanism.law(mechanism.calibrate(TASK, None, 0))
    assert "atoms at the limits" in (law.not_gaussian or "")


def test_gauss_newton_reports_the_one_norm_with_a_rounded_kink():
    world = linear_world(LaplaceNoise(std=0.5))
    problem = ThreatModel("labels-known").reveal(world, world.observe(0))
    matrix, x = world.mechanism.observation.matrix, world.batch.inputs
    residual = (matrix @ x.flatten() - flatten(dict(problem.observed))) / 0.5
    energy = world.prior.energy(x)
    attack = exhume.attack("gauss-newton")
    value = attack.objective(problem, x, world.batch.targets)
    assert value == pytest.approx(float(laplace_objective(residual, energy)))
    exact = float(2**0.5 * residual.abs().sum() + energy)
    # The rounded kink is at most its width, 0.05, below |r|.
    assert exact - 2**0.5 * 0.05 * len(residual) <= value <= exact
