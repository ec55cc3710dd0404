"""The Cramér-Rao bound, its Monte Carlo, and the check of single precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from conformance.closeness import assert_close_to_scale
from exhume.bounds import mean_information
from exhume.bounds.bayesian_cramer_rao import BayesianCramerRao
from exhume.bounds.bayesian_trace import BayesianTrace
from exhume.bounds.cramer_rao import CramerRao
from exhume.bounds.evaluation_points import evaluation_points
from exhume.bounds.fisher import fisher_information
from exhume.bounds.inequalities import (
    diagonal_and_factor,
    trace_bound,
    unbiased_cramer_rao_bound,
)
from exhume.bounds.mean_information import (
    invert_mean_information,
    rounding_of_trace,
    summed,
)
from exhume.bounds.monte_carlo import jackknifed_trace_bound
from exhume.bounds.regularity import information_map_at
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.batch import Batch
from exhume.problem.bound import Binds, BoundValue, NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Task
from exhume.problem.world import World

DIMENSION, OBSERVED = 6, 12
MATRIX = torch.randn(
    OBSERVED, DIMENSION, generator=generator(0, "matrix"), dtype=torch.float64
)


def normal(*shape, key):
    return torch.randn(shape, generator=generator(key), dtype=torch.float64)


def gaussian_prior(std, dimension):
    variance = std**2 * torch.eye(dimension, dtype=torch.float64)
    return GaussianDensity.from_covariance(0 * variance[0], variance)


def linear_world(std, batch_size=1, matrix=MATRIX):
    """A world whose release is the mean of A x, plus noise."""
    frozen = nn.Linear(DIMENSION, OBSERVED, bias=False).double()
    frozen.weight.data = matrix.clone()
    frozen.requires_grad_(False)
    last = nn.Linear(OBSERVED, 1, bias=False).double()
    last.weight.data.zero_()
    targets = torch.full((batch_size, 1), -0.5, dtype=torch.float64)
    batch = Batch(
        normal(batch_size, DIMENSION, key=5), targets, EventSpec.vector(DIMENSION)
    )
    mechanism = Mechanism(Gradient(), (GaussianNoise(std=std),))
    task = Task(nn.Sequential(frozen, last), loss="mse")
    return World(task, batch, mechanism, prior=gaussian_prior(1.3, DIMENSION))


def network_world(std, dimension=DIMENSION, prior_std=0.5):
    net = nn.Sequential(nn.Linear(dimension, 10), nn.Tanh(), nn.Linear(10, 4))
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, key=index))
    batch = Batch(
        normal(1, dimension, key=9), torch.tensor([0]), EventSpec.vector(dimension)
    )
    mechanism = Mechanism(Gradient(), (GaussianNoise(std=std),))
    prior = gaussian_prior(prior_std, dimension)
    return World(Task(net), batch, mechanism, prior=prior)


def value(found):
    assert isinstance(found, BoundValue), found
    return found


def points_and_map(world, count, key=0):
    points = evaluation_points(world, None, count, key)
    return points, information_map_at(world, points, key)


# --- unbiased attacks ----------------------------------------------------------------


def test_least_squares_attains_the_bound_and_shrinkage_falls_below():
    std, count = 2.0, 20_000
    world = linear_world(std)
    found = value(CramerRao(draws=2)(world))
    assert found.binds is Binds.UNBIASED_ATTACKS
    assert any("unbiased" in sentence for sentence in found.assumptions)
    truth = world.prior.sample(count, key=1)
    released = truth @ MATRIX.T + std * normal(count, OBSERVED, key=2)
    unbiased = released @ torch.linalg.pinv(MATRIX).T
    errors = (unbiased - truth).square()
    spread = errors.sum(1).std() / count**0.5
    assert float(errors.sum(1).mean()) == pytest.approx(
        found.total, abs=4.5 * float(spread)
    )
    # Every coordinate for itself, too.
    own = errors.mean(0) - found.per_coordinate.flatten()
    assert float((own.abs() / (errors.std(0) / count**0.5)).max()) < 4.5
    # A biased attack is not bound by it; no attack is below the Bayesian bound.
    information = MATRIX.T @ MATRIX / std**2
    shrunk = (
        unbiased
        @ information
        @ torch.linalg.inv(information + torch.eye(DIMENSION).double() / 1.3**2)
    )
    smaller = (shrunk - truth).square().sum(1)
    floor = value(BayesianCramerRao(draws=2)(world)).total
    assert floor < float(smaller.mean()) + 4.5 * float(smaller.std()) / count**0.5
    assert float(smaller.mean()) + 4.5 * float(spread) < found.total


def test_the_bound_is_the_mean_over_draws_of_the_trace_of_the_inverse():
    world = network_world(0.05, prior_std=0.05)
    found = value(CramerRao(draws=5)(world))
    count = int(found.details["draws"])
    points, at = points_and_map(world, count)
    totals = torch.stack(
        [torch.linalg.inv(fisher_information(at(x), None, x)).trace() for x in points]
    )
    assert found.total == pytest.approx(float(totals.mean()), rel=1e-9)
    plain = float(totals.std()) / count**0.5
    assert plain < found.standard_error < 1.5 * plain
    assert found.details["median"] == pytest.approx(float(totals.median()))
    assert float(found.per_coordinate.sum()) == pytest.approx(found.total)


def test_a_direction_that_is_hidden_allows_no_unbiased_attack():
    # Equal labels: only the sum of the two examples shows.
    found = CramerRao(draws=2)(linear_world(0.5, batch_size=2))
    assert isinstance(found, NotApplicable)
    assert "no attack is unbiased" in found.reason
    # The Bayesian bound needs no unbiased attack.
    assert value(BayesianCramerRao(draws=2)(linear_world(0.5, batch_size=2))).total > 0
    with pytest.raises(InvalidInput, match="singular in float64"):
        unbiased_cramer_rao_bound(torch.ones(3, 3))


def test_public_examples_serve_where_no_prior_can_be_sampled():
    world = replace(network_world(0.05), prior=None)
    found = CramerRao()(world)
    assert isinstance(found, NotApplicable)
    assert "nowhere to evaluate" in found.reason
    near = normal(1, DIMENSION, key=2) + 0.01 * normal(3, DIMENSION, key=1)
    public = Batch(near, torch.zeros(3).long(), world.batch.spec)
    assert value(CramerRao()(replace(world, public=public))).details["draws"] == 3
    with pytest.raises(InvalidInput, match="draws is 1"):
        exhume.bound("cramer-rao", draws=1)


# --- Monte Carlo ---------------------------------------------------------------------


def test_the_weaker_bound_beneath_the_matrix_is_without_bias_as_well():
    # Of one unknown both bounds are one number, so that neither may hold the other up.
    world = network_world(4.0, dimension=1, prior_std=1.0)
    for key in range(2):
        found = value(BayesianCramerRao(draws=4)(world, key=key))
        count = int(found.details["draws"])
        points, at = points_and_map(world, count, key)
        traces = [float(fisher_information(at(x), None, x)) for x in points]
        plug_in = trace_bound(sum(traces) / count, 1.0, 1)
        bias = found.details["monte_carlo_bias"]
        assert bias > 1e-4 * plug_in
        assert found.total == pytest.approx(plug_in - bias, rel=1e-9)
        assert found.total == pytest.approx(found.details["trace_bound"], rel=1e-9)


def test_the_jackknife_of_the_trace_bound_removes_its_bias():
    traces = normal(4000, 4, key=3).exp()
    found = torch.tensor([jackknifed_trace_bound(t, 1.0, 1) for t in traces])
    truth = trace_bound(float(torch.tensor(0.5).exp()), 1.0, 1)
    plug_in = torch.tensor([trace_bound(float(t.mean()), 1.0, 1) for t in traces])
    assert float(plug_in.mean()) > truth + 4.5 * float(plug_in.std()) / 4000**0.5
    left = abs(float(found[:, 0].mean()) - truth)
    assert left < 0.35 * (float(plug_in.mean()) - truth)
    world = network_world(0.05, prior_std=0.2)
    matrix = value(BayesianCramerRao(draws=6)(world))
    trace = value(BayesianTrace(draws=6, probes=200)(world))
    assert matrix.details["trace_bound"] == pytest.approx(trace.total, rel=0.02)


# --- single precision ----------------------------------------------------------------


def rounded_inverse(size, monkeypatch):
    """Return the inverse with and without float32 for a network, and its exact one."""
    monkeypatch.setattr(mean_information, "_LARGE", 0)
    world = network_world(0.05, dimension=size)
    points, at = points_and_map(world, 3)
    prior = world.prior.information()
    quick = invert_mean_information(at, points, prior, 0)[1]
    monkeypatch.setattr(mean_information, "_SINGLE", 0.0)
    return quick, invert_mean_information(at, points, prior, 0)[1]


@pytest.mark.parametrize("size", [4, 20])
def test_single_precision_is_checked(size, monkeypatch):
    quick, exact = rounded_inverse(size, monkeypatch)
    assert 0 < quick.rounding < 1e-3
    # Where the check does not pass, float64 takes over.
    assert exact.rounding == 0
    moved = abs(float(quick.diagonal.sum() / exact.diagonal.sum()) - 1)
    assert 0 < moved < quick.rounding
    assert (
        float((summed(quick.without) / summed(exact.without) - 1).abs().max())
        < quick.rounding
    )


def test_what_float32_cannot_resolve_is_left_to_float64(monkeypatch):
    # Beside directions seen with seven digits lie others that only the prior knows.
    monkeypatch.setattr(mean_information, "_LARGE", 0)
    turn = torch.linalg.qr(normal(DIMENSION, DIMENSION, key=1))[0]
    matrix = MATRIX * torch.logspace(0, -5, DIMENSION).double() @ turn
    world = linear_world(1e-3, matrix=matrix)
    prior = world.prior.information()
    points, at = points_and_map(world, 2)
    found = invert_mean_information(at, points, prior, 0)[1]
    assert found.rounding == 0
    inverse = torch.linalg.inv(matrix.T @ matrix / 1e-6 + prior)
    assert_close_to_scale(found.diagonal, inverse.diagonal(), 1e-6)
    monkeypatch.setattr(mean_information, "_SINGLE", float("inf"))
    quick = invert_mean_information(at, points, prior, 0)[1]
    assert abs(float(quick.diagonal.sum() / found.diagonal.sum()) - 1) > 1e-3


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e-2])
def test_the_estimate_of_rounding_covers_what_rounding_does(scale):
    root = normal(40, 30, key=0) * torch.logspace(0, 3, 30).double()
    matrix = root.T @ root
    exact = float(torch.linalg.inv(matrix).trace())
    for key in range(20):
        error = normal(30, 30, key=100 + key) * scale
        # In turn without and with a direction: too large or too small as a whole.
        error = scale * matrix if key % 2 else error + error.T
        diagonal, factor = diagonal_and_factor(matrix + error)
        white = normal(30, 8, key=200 + key)
        found = rounding_of_trace(lambda t, e=error: e @ t, factor, white)
        # A few directions know a norm up to a small factor.
        assert found > 0.3 * abs(float(diagonal.sum()) - exact)
        assert found < 1000 * scale * exact
        assert rounding_of_trace(lambda t: matrix @ t, factor, white) == float("inf")


def test_the_factor_belongs_to_the_inverse():
    root = normal(1300, 1250, key=0)
    matrix = root.T @ root + torch.eye(1250).double()
    diagonal, factor = diagonal_and_factor(matrix)
    torch.testing.assert_close(factor @ factor.T, matrix)
    expected = torch.linalg.inv(matrix).diagonal()
    assert_close_to_scale(diagonal, expected, 1e-8)
