"""The attack that reads the variance: its objective, its reach, and where it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from exhume.attacks.covariance_aware import CovarianceAware
from exhume.attacks.engine.variance_residual import heteroscedastic_objective
from exhume.attacks.relaxations.box import Logistic
from exhume.attacks.relaxations.identity import InUnits
from exhume.bounds.fisher import fisher_information, information_map
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.law import Law
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import Outcome
from exhume.problem.relaxation import Units
from exhume.problem.task import Task

DIMENSION, WIDTH, STRONG = 4, 300, 100.0
NAME = "2.weight"
TARGET = torch.ones(1, 1).double()


def normal(*shape, key):
    return torch.randn(shape, generator=generator(key), dtype=torch.float64)


def network():
    first = nn.Linear(DIMENSION, WIDTH, bias=False).double()
    first.weight.data = normal(WIDTH, DIMENSION, key=0)
    first.requires_grad_(False)
    last = nn.Linear(WIDTH, 1, bias=False).double()
    last.weight.data = normal(1, WIDTH, key=1) / WIDTH
    return Task(nn.Sequential(first, nn.Tanh(), last), loss="mse")


TASK = network()


def leak(task, model, candidate):
    """A variance that grows with the update."""
    g = model.forward_func(task, candidate)[NAME]
    return {NAME: STRONG**2 * g.exp()}


def setting(key):
    """Return a truth, its prior, and a problem whose noise drowns the mean."""
    covariance = torch.eye(DIMENSION, dtype=torch.float64) / DIMENSION
    prior = GaussianDensity.from_covariance(0 * covariance[0], covariance)
    x = prior.sample(1, key).double()
    candidate = Candidate(x, TARGET)
    v = leak(TASK, Gradient(), candidate)
    g = Gradient().forward_func(TASK, candidate)[NAME]
    observed = {NAME: g + v[NAME].sqrt() * normal(*g.shape, key=100 + key)}
    law = Law(variance=v, variance_at=leak)
    problem = Problem(
        observed,
        EventSpec.vector(DIMENSION),
        TASK,
        TARGET,
        1,
        observation_model=Gradient(),
        law=law,
        prior=prior,
    )
    return x, problem


def squared(answer, x):
    return float((answer.inputs - x).square().sum())


def test_the_objective_is_the_negative_log_posterior():
    x, problem = setting(0)
    prior = problem.prior
    assert isinstance(prior, GaussianDensity)
    own = [CovarianceAware().objective(problem, p, TARGET) for p in (x, 0 * x)]
    difference, spread = [], []
    for point in (x, 0 * x):
        candidate = Candidate(point, TARGET)
        g = Gradient().forward_func(TASK, candidate)[NAME]
        v = leak(TASK, Gradient(), candidate)[NAME]
        noise = torch.distributions.Normal(g, v.sqrt())
        density = noise.log_prob(problem.observed[NAME]).sum()
        difference.append(float(prior.energy(point) - density))
        flat = (problem.observed[NAME] - g).reshape(-1)
        spread.append(heteroscedastic_objective(flat, v.reshape(-1), 0.0))
    assert own[0] is not None
    assert own[1] is not None
    assert own[0] - own[1] == pytest.approx(difference[0] - difference[1])
    energy = prior.energy(x)
    assert own[0] == pytest.approx(float(spread[0] + energy))


def test_curvature_is_the_fisher_information_and_slope_the_derivative():
    x, problem = setting(1)
    units = InUnits(problem.spec, Units())
    residual = CovarianceAware(prior=False)._residual(problem, units, TARGET)
    model = residual.linearise(x.reshape(-1))
    columns = torch.stack([model.product(e) for e in torch.eye(DIMENSION).double()])

    def mean(inputs):
        return Gradient().forward_func(TASK, Candidate(inputs, TARGET))

    def variance(inputs):
        return leak(TASK, Gradient(), Candidate(inputs, TARGET))

    law = problem.law
    assert isinstance(law, Law)
    whitened = information_map(mean, law, x, variance)
    torch.testing.assert_close(columns, fisher_information(whitened, None, x))
    step = 1e-6
    for index, unit in enumerate(torch.eye(DIMENSION).double()):
        ends = [residual.objective(x.reshape(-1) + s * step * unit) for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(model.gradient[index]) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_derivatives_go_through_a_relaxation_and_its_prior():
    x, problem = setting(1)
    own = replace(problem, spec=EventSpec.vector(DIMENSION, -3, 3))
    attack, logistic = CovarianceAware(), Logistic(own.spec)
    residual = attack._residual(own, logistic, TARGET)
    z, prior = logistic.encode(x).flatten(), residual.prior
    assert prior is not None
    model = residual.linearise(z)
    (jacobian,) = torch.autograd.functional.jacobian(residual.unknowns.inputs, z)
    on_x = attack._residual(own, InUnits(own.spec, Units()), TARGET).linearise(
        x.flatten()
    )
    for unit in torch.eye(DIMENSION).double():
        through = jacobian.T @ on_x.product(jacobian @ unit)
        torch.testing.assert_close(model.product(unit), through)
    torch.testing.assert_close(model.gradient, jacobian.T @ on_x.gradient)


def test_strong_noise_with_a_private_scale_hides_nothing():
    aware, fixed, chance = [], [], []
    for key in range(3):
        x, problem = setting(key)
        law = problem.law
        assert isinstance(law, Law)
        answer = CovarianceAware(iterations=8, restarts=1)(problem, key)
        assert answer.adaptive
        aware.append(squared(answer, x))
        public = replace(problem, law=replace(law, variance_at=None))
        fixed.append(squared(exhume.attack("gauss-newton", restarts=1)(public, key), x))
        chance.append(float(x.square().sum()))
        truth = CovarianceAware().objective(problem, x, TARGET)
        assert truth is not None
        assert answer.objective is not None
        assert answer.objective < truth + 0.01 * abs(truth)
    assert sorted(aware)[1] < 0.1 * sorted(chance)[1]
    assert sorted(fixed)[1] > 0.3 * sorted(chance)[1]
    assert sorted(aware)[1] < 0.2 * sorted(fixed)[1]


def test_a_given_start_is_used_and_the_lowest_objective_wins():
    x, problem = setting(2)
    near = CovarianceAware(restarts=1).run_from(problem, 0, x + 0.02)
    assert squared(near, x) < 0.05
    assert near.trace[0].objective == CovarianceAware().objective(
        problem, x + 0.02, TARGET
    )
    many = CovarianceAware(iterations=8, restarts=2).run_from(problem, 0, x + 0.02)
    assert many.objective is not None
    assert near.objective is not None
    assert many.objective <= near.objective


def test_a_variance_that_does_not_depend_on_the_data_tells_nothing():
    _, problem = setting(0)
    law = problem.law
    assert isinstance(law, Law)
    for other in (replace(law, variance_at=None), replace(law, not_gaussian="so")):
        answer = CovarianceAware()(replace(problem, law=other), 0)
        assert answer.outcome is Outcome.NOT_APPLICABLE
        assert "gauss-newton" in answer.notes[0]
        assert answer.objective is None
    with pytest.raises(InvalidInput, match="restarts is 0"):
        exhume.attack("covariance-aware", restarts=0)
