"""The trace form of the bound, per-example bounds, and laws of every kind of noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from exhume.bounds.bayesian_cramer_rao import BayesianCramerRao
from exhume.bounds.bayesian_trace import BayesianTrace
from exhume.bounds.fisher import (
    fisher_information,
    information_map,
    mean_map,
    variance_map,
)
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.batch import Batch
from exhume.problem.bound import BoundValue, NotApplicable
from exhume.problem.covariance import LowRank
from exhume.problem.event import EventSpec
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import flatten
from exhume.problem.world import World

DIMENSION = 6


def normal(*shape, key):
    return torch.randn(shape, generator=generator(key), dtype=torch.float64)


def prior(std=0.5, dimension=DIMENSION):
    variance = std**2 * torch.eye(dimension, dtype=torch.float64)
    return GaussianDensity.from_covariance(0 * variance[0], variance)


def network(outputs=4):
    net = nn.Sequential(nn.Linear(DIMENSION, 10), nn.Tanh(), nn.Linear(10, outputs))
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(0.5 * normal(*p.shape, key=index))
    return Task(net.double())


def world(*defenses, labels=(0,)):
    inputs = normal(len(labels), DIMENSION, key=9)
    batch = Batch(inputs, torch.tensor(labels), EventSpec.vector(DIMENSION))
    return World(network(), batch, Mechanism(Gradient(), defenses), prior=prior())


def linear_world(matrix, targets, std):
    """A world whose gradient is −2 Σ_b y_b A x_b / B."""
    frozen = nn.Linear(*matrix.T.shape, bias=False).double()
    frozen.weight.data = matrix.clone()
    frozen.requires_grad_(False)
    last = nn.Linear(len(matrix), 1, bias=False).double()
    last.weight.data.zero_()
    y = torch.tensor(targets, dtype=torch.float64).reshape(-1, 1)
    x = normal(len(y), matrix.shape[1], key=5)
    batch = Batch(x, y, EventSpec.vector(matrix.shape[1]))
    mechanism = Mechanism(Gradient(), (GaussianNoise(std=std),))
    task = Task(nn.Sequential(frozen, last), loss="mse")
    return World(task, batch, mechanism, prior=prior(1.3, matrix.shape[1]))


def value(found):
    assert isinstance(found, BoundValue), found
    return found


# --- trace form ----------------------------------------------------------------------


def test_trace_bound_is_exact_where_all_directions_are_equally_visible():
    matrix = torch.linalg.qr(normal(20, DIMENSION, key=0))[0]
    single = linear_world(matrix, [-0.5], 0.7)
    expected = DIMENSION / (1 / 0.7**2 + 1 / 1.3**2)
    trace = value(BayesianTrace(draws=8, probes=64)(single))
    assert trace.total == pytest.approx(expected, abs=4 * trace.standard_error)
    assert trace.standard_error < 0.01 * expected
    assert value(BayesianCramerRao(draws=2)(single)).total == pytest.approx(expected)
    error = trace.details["fisher_trace_error_of_sketch"]
    exact = pytest.approx(DIMENSION / 0.7**2, abs=4 * error)
    assert trace.details["fisher_trace"] == exact
    assert trace.details["prior_trace"] == pytest.approx(DIMENSION / 1.3**2)
    assert trace.per_example == ()


@pytest.mark.parametrize("std", [1e-3, 0.05, 1.0, 20.0])
def test_trace_bound_is_ordered_below_the_others(std):
    setting = world(GaussianNoise(std=std))
    trace = value(BayesianTrace(draws=12, probes=16)(setting))
    matrix = value(BayesianCramerRao(draws=12)(setting))
    slack = 3 * (trace.standard_error**2 + matrix.standard_error**2) ** 0.5
    assert trace.total <= matrix.total + slack
    # The same draws, so the exact trace of the same matrices.
    assert trace.total == pytest.approx(
        matrix.details["trace_bound"], abs=4 * trace.standard_error + 1e-12, rel=0.02
    )


def test_trace_bound_states_its_error():
    setting = world(GaussianNoise(std=0.05))
    many = value(BayesianTrace(draws=2048, probes=8)(setting))
    few = [value(BayesianTrace(draws=6, probes=2)(setting, key=k)) for k in range(1, 9)]
    errors = torch.tensor([b.total - many.total for b in few])
    stated = torch.tensor([b.standard_error for b in few]).square().mean().sqrt()
    assert float(errors.square().mean().sqrt()) < 2.5 * float(stated)
    assert float(stated) < 2.5 * float(errors.square().mean().sqrt())
    assert many.standard_error < 0.5 * float(stated)


def test_trace_bound_refuses_like_the_matrix_form():
    cases = [(), (Pruning(ratio=0.5), GaussianNoise(std=0.1))]
    for defenses in cases:
        found = BayesianTrace()(world(*defenses))
        assert isinstance(found, NotApplicable)
        assert found == BayesianCramerRao()(world(*defenses))
    nobody = replace(world(GaussianNoise(std=0.1)), prior=None)
    assert "no prior is given" in BayesianTrace()(nobody).reason  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="probes is 1"):
        exhume.bound("bayesian-trace", probes=1)
    with pytest.raises(InvalidInput, match="draws is 1"):
        exhume.bound("bayesian-trace", draws=1)


# --- who in a batch is exposed -------------------------------------------------------


def test_an_example_with_a_weaker_gradient_has_the_higher_bound():
    # O = Σ_b c_b A x_b with AᵀA = I: per direction a rank-one information c cᵀ/σ².
    matrix = torch.linalg.qr(normal(20, DIMENSION, key=0))[0]
    targets, std = [-2.0, -0.5], 0.7
    found = value(BayesianCramerRao(draws=2)(linear_world(matrix, targets, std)))
    weights = -torch.tensor(targets, dtype=torch.float64)
    information = weights.outer(weights) / std**2 + torch.eye(2).double() / 1.3**2
    expected = torch.linalg.inv(information).diagonal()
    assert found.per_example == pytest.approx(expected.tolist())
    assert found.per_example[1] > 1.5 * found.per_example[0]
    assert found.per_coordinate is not None
    assert float(found.per_coordinate.sum()) == pytest.approx(found.total)


def test_coordinates_sum_to_the_bound_after_its_correction():
    found = value(
        BayesianCramerRao(draws=5)(world(GaussianNoise(std=0.05), labels=(0, 1)))
    )
    assert found.per_coordinate is not None
    assert found.per_coordinate.shape == (2, DIMENSION)
    assert abs(found.details["monte_carlo_bias"]) > 1e-6 * found.total
    assert float(found.per_coordinate.sum()) == pytest.approx(found.total)


# --- the information is the covariance of the score ----------------------------------


def score_products(law, sample, log_density, count=20_000):
    """Return the mean of score scoreᵀ over releases, and its standard error."""
    x = normal(1, DIMENSION, key=3)
    released = sample(x, count)
    gradient = torch.func.grad(log_density)
    scores = torch.func.vmap(gradient, (None, 0))(x, released).reshape(count, -1)
    products = scores.unsqueeze(1) * scores.unsqueeze(2)
    return x, products.mean(0), products.std(0) / count**0.5


def task_mean(law):
    return mean_map(network(outputs=3), Gradient(), law, torch.tensor([1]))


NAMES = tuple(network(3).parameters())
KEEP = {"0.weight": normal(10, DIMENSION, key=11) > 0}


def leak(task, model, candidate):
    """A smooth variance of every coordinate that follows its squared update."""
    exact = model.forward_func(task, candidate)
    return {n: 0.01 + 0.3 * t.square() for n, t in exact.items()}


def test_information_of_a_leaking_variance_is_the_covariance_of_the_score():
    task, label = network(outputs=3), torch.tensor([1])
    law = Law(variance={n: torch.tensor(0.1) for n in NAMES}, variance_at=leak)
    mean, variance = task_mean(law), variance_map(task, Gradient(), law, label)
    assert variance is not None

    def sample(x, count):
        centre, spread = flatten(mean(x)), flatten(variance(x))
        return centre + spread.sqrt() * normal(count, len(centre), key=4)

    def log_density(x, o):
        centre, spread = flatten(mean(x)), flatten(variance(x))
        return -0.5 * ((o - centre).square() / spread + spread.log()).sum()

    x, found, error = score_products(law, sample, log_density)
    expected = fisher_information(information_map(mean, law, x, variance), None, x)
    assert float(((found - expected).abs() / error).max()) < 4.5
    fixed = fisher_information(
        information_map(
            mean, Law(variance={n: v.detach() for n, v in variance(x).items()}), x
        ),
        None,
        x,
    )
    assert float(((found - fixed).abs() / error).max()) > 20


@pytest.mark.parametrize("masked", [False, True])
def test_information_under_laplace_noise_is_the_covariance_of_the_score(masked):
    scale = 0.2
    law = Law(
        variance={n: torch.tensor(2 * scale**2) for n in NAMES},
        family="laplace",
        mask=KEEP if masked else {},
    )
    mean = task_mean(law)
    kept = flatten(
        law.keep(
            {
                n: torch.ones_like(t)
                for n, t in mean(normal(1, DIMENSION, key=3)).items()
            }
        )
    )

    def sample(x, count):
        centre = flatten(mean(x))
        draws = torch.empty(2, count, len(centre), dtype=torch.float64)
        draws.exponential_(generator=generator(4))
        return centre + scale * (draws[0] - draws[1])

    def log_density(x, o):
        return -(kept * (o - flatten(mean(x))).abs()).sum() / scale

    x, found, error = score_products(law, sample, log_density)
    expected = fisher_information(information_map(mean, law, x), None, x)
    assert float(((found - expected).abs() / error).max()) < 4.5


def test_information_under_correlated_noise_with_removed_coordinates():
    task = network(outputs=3)
    shapes = task.parameters()
    diagonal = {n: torch.full(p.shape, 0.01).double() for n, p in shapes.items()}
    count = sum(p.numel() for p in shapes.values())
    factor = 0.3 * normal(count, 3, key=6)
    law = Law().plus_noise({}, covariance=LowRank.of(diagonal, factor)).masked(KEEP)
    mean = task_mean(law)
    x = normal(1, DIMENSION, key=3)
    found = fisher_information(information_map(mean, law, x), None, x)
    kept = flatten(
        {n: KEEP.get(n, torch.ones(p.shape).bool()) for n, p in shapes.items()}
    )
    exact = Gradient().forward_func

    def release(inputs):
        return flatten(exact(task, Candidate(inputs, torch.tensor([1]))))[kept]

    rows = torch.func.jacfwd(release)(x).reshape(int(kept.sum()), -1)
    sigma = 0.01 * torch.eye(count).double() + factor @ factor.T
    dense = rows.T @ torch.linalg.solve(sigma[kept][:, kept], rows)
    torch.testing.assert_close(found, dense)


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_a_coordinate_without_noise_is_named(family):
    class Half(GaussianNoise):
        def push(self, law, plan, observed):
            names = [n for n in plan.shapes if n.startswith("0.")]
            own = {n: torch.tensor(self.std**2) for n in names}
            return law.plus_noise(own, family=family)

    found = BayesianCramerRao(draws=2)(world(Half(std=0.1)))
    assert isinstance(found, NotApplicable)
    assert "infinite information: 2.weight, 2.bias" in found.reason
