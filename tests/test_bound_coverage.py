"""Standard errors of the Bayesian bounds cover the truth, and tails are noticed."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, genpareto

import exhume
from exhume.bounds import held_out
from exhume.bounds.held_out import held_out_ratio, spread_of_trace
from exhume.bounds.monte_carlo import average, covering, largest_shape, pareto_shape
from exhume.keys import generator
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.bound import BoundValue, NotApplicable


@pytest.fixture(scope="module")
def study():
    """The benchmark of the coverage, which knows releases in closed form."""
    path = Path(__file__).parent.parent / "benchmarks" / "bound_coverage.py"
    spec = importlib.util.spec_from_file_location("bound_coverage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_powers_of_ridge_functions_are_those_of_quadrature(study):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    u = torch.from_numpy(nodes).requires_grad_()
    for ridge in (
        study.sine(1.3, 0.7),
        study.square(-0.4),
        study.exponential(0.6),
        study.step(0.8, 1.1),
    ):
        slope = torch.autograd.grad(ridge.function(u).sum(), u)[0].numpy()
        found = float(weights @ slope**2) / math.sqrt(2 * math.pi)
        assert found == pytest.approx(ridge.power, rel=1e-6)


@pytest.mark.parametrize("name", ["bayesian-cramer-rao", "bayesian-trace"])
def test_intervals_cover_the_truth_as_often_as_they_say(study, name):
    found = study.coverage(name, 2, range(16))
    assert found.given >= 8
    missed = found.above + found.below
    # At 5 %, more are missed once in a thousand times.
    assert missed <= binom.ppf(0.999, found.given, 0.05)
    assert found.beyond <= 1
    assert found.worst < 1.3


def test_few_draws_do_not_make_a_bound_too_large(study, monkeypatch):
    # As for thousands of unknowns: 8 to 64 draws.
    monkeypatch.setattr(held_out, "AFFORDABLE", 0)
    found = study.coverage("bayesian-cramer-rao", 2, range(10))
    assert found.given >= 5
    assert 8 <= found.drawn <= 64
    assert found.above + found.below <= binom.ppf(0.999, found.given, 0.05)
    assert found.beyond <= 1


def test_a_rare_region_that_carries_the_information_is_refused(study):
    def world(place, width):
        ridge = study.step(place, width)
        scale = torch.tensor([30.0], dtype=torch.float64)
        weight = torch.ones(1, 1, dtype=torch.float64)
        base, _ = study.closed_form(0)
        net = study.Features(weight, scale, [ridge])
        prior = GaussianDensity.from_covariance(
            torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)
        )
        batch = exhume.Batch(
            torch.zeros(1, 1, dtype=torch.float64),
            base.batch.targets,
            exhume.EventSpec.vector(1),
        )
        task = exhume.Task(net, loss="mse")
        return exhume.World(task, batch, base.mechanism, prior=prior)

    for name in ("bayesian-cramer-rao", "bayesian-trace"):
        near = exhume.bound(name, draws=2)(world(0.0, 1.0))
        assert isinstance(near, BoundValue)
        far = exhume.bound(name, draws=2)(world(3.5, 0.3))
        assert isinstance(far, NotApplicable)
        assert "rare draws" in far.reason


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_the_shape_of_a_pareto_tail_is_found(shape):
    draws = [
        genpareto.rvs(shape, size=512, random_state=np.random.default_rng(key))
        for key in range(30)
    ]
    found = [pareto_shape(torch.from_numpy(x)) for x in draws]
    # The estimate is pulled towards ½ by ten draws' worth.
    size = int(min(512 / 5, 3 * 512**0.5))
    expected = (size * shape + 5) / (size + 10)
    error = np.std(found) / 30**0.5
    assert abs(np.mean(found) - expected) < 4 * error + 0.05
    assert largest_shape(512) == pytest.approx(1 - 1 / math.log10(512))


def test_the_spread_of_traces_is_that_of_their_matrices():
    # J_F(x) = x² A Aᵀ: its trace varies as x² does.
    for unknowns in (3, 40):
        source = generator(unknowns, "matrix")
        matrix = torch.randn(5, unknowns, generator=source, dtype=torch.float64)
        points = torch.randn(256, 1, unknowns, generator=source, dtype=torch.float64)

        def at(x, matrix=matrix):
            return lambda v: {"o": x[0, 0] * (v @ matrix.T)}

        found = spread_of_trace(at, points, lambda z: z, key=0)
        traces = points[:, 0, 0].square() * matrix.square().sum()
        assert found == pytest.approx(float(traces.std()), rel=1e-9 + (unknowns > 12))


def test_the_ratio_of_held_out_draws_is_a_lower_bound():
    source = generator(0, "held-out")
    root = torch.randn(6, 6, generator=source, dtype=torch.float64)
    truth = root @ root.T + torch.eye(6)
    guess = torch.linalg.inv(truth + 0.3 * torch.eye(6))
    signs = torch.randint(0, 2, (20_000, 6), generator=source) * 2.0 - 1
    tilted = signs.double() @ guess
    claimed = (signs * tilted).sum(dim=1)
    seen = ((tilted @ truth) * tilted).sum(dim=1)
    ratio, error = held_out_ratio(claimed, seen)
    exact = float(guess.trace() / (guess @ truth @ guess).trace())
    assert abs(ratio - exact) < 4 * error
    below = exact * float(guess.trace())
    assert below <= float(torch.linalg.inv(truth).trace())


def test_errors_from_few_draws_cover_by_student():
    draws = torch.randn(4000, 3, generator=generator(0, "t"), dtype=torch.float64)
    inside = 0
    for row in draws:
        mean, error = average(row)
        inside += abs(mean) < 1.96 * error
    assert inside / len(draws) == pytest.approx(0.95, abs=0.014)
    assert covering(1.0, 10_000) == pytest.approx(1, abs=1e-3)
