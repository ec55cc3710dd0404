"""Bounds: closed forms, order, and the reasons to refuse."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from conformance.worlds import gaussian_prior, network_world, normal
from exhume.bounds import held_out
from exhume.bounds.bayesian_cramer_rao import BayesianCramerRao
from exhume.bounds.cramer_rao import CramerRao
from exhume.bounds.fisher import fisher_information
from exhume.bounds.fisher_information_leakage import (
    diagonal_fisher_information_loss,
    fisher_information_loss,
    fisher_spectral_norm,
)
from exhume.bounds.inequalities import (
    bayesian_cramer_rao_bound,
    trace_bound,
    trace_of_inverse,
    unbiased_cramer_rao_bound,
)
from exhume.bounds.monte_carlo import jackknife, jackknifed_diagonal
from exhume.bounds.regularity import information_maps
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.priors.total_variation import TotalVariationDensity
from exhume.problem.batch import Batch
from exhume.problem.bound import Binds, BoundValue, NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Task
from exhume.problem.world import World

DIMENSION, OBSERVED, STD = 8, 20, 0.7
SPEC = EventSpec.vector(DIMENSION)

MATRIX = normal(OBSERVED, DIMENSION, key=0) / 2


def linear_world(*defenses, batch_size=1, prior=None):
    """A world whose gradient is exactly A x: a zero last layer behind a frozen A.

    With weights w = 0 and target y the gradient of the squared error is −2 y (A x) / B.
    """
    frozen = nn.Linear(DIMENSION, OBSERVED, bias=False).double()
    frozen.weight.data = MATRIX.clone()
    frozen.requires_grad_(False)
    last = nn.Linear(OBSERVED, 1, bias=False).double()
    last.weight.data.zero_()
    task = Task(nn.Sequential(frozen, last), loss="mse")
    targets = torch.full((batch_size, 1), -0.5, dtype=torch.float64)
    batch = Batch(normal(batch_size, DIMENSION, key=5), targets, SPEC)
    mechanism = Mechanism(Gradient(), defenses)
    return World(task, batch, mechanism, prior=prior or gaussian_prior(1.3, DIMENSION))


def value(bound):
    assert isinstance(bound, BoundValue), bound
    return bound


def refusal(bound):
    assert isinstance(bound, NotApplicable), bound
    return bound.reason


# --- closed forms --------------------------------------------------------------------


def exact_error(std=STD, prior_std=1.3):
    """Minimum mean squared error of the linear Gaussian problem, in closed form."""
    identity = torch.eye(DIMENSION, dtype=torch.float64)
    information = MATRIX.T @ MATRIX / std**2 + identity / prior_std**2
    return float(torch.linalg.inv(information).trace())


def test_linear_gaussian_bound_is_the_closed_form():
    found = value(BayesianCramerRao(draws=3)(linear_world(GaussianNoise(std=STD))))
    assert found.total == pytest.approx(exact_error(), rel=1e-10)
    assert found.standard_error < 1e-10
    assert abs(found.details["monte_carlo_bias"]) < 1e-10
    assert found.details["prior_variance"] == pytest.approx(DIMENSION * 1.3**2)


def test_linear_gaussian_bound_is_the_error_of_the_best_attack():
    world = linear_world(GaussianNoise(std=STD))
    found = value(BayesianCramerRao(draws=2)(world))
    count = 200_000
    truth = world.prior.sample(count, key=1)
    released = truth @ MATRIX.T + STD * normal(count, OBSERVED, key=2)
    # The world's own release has this law: same mean, same noise.
    again = replace(world, batch=Batch(truth[:1], world.batch.targets, SPEC))
    residual = again.observe(0).values["1.weight"] - truth[:1] @ MATRIX.T
    assert float(residual.std()) == pytest.approx(STD, rel=4.5 / (2 * OBSERVED) ** 0.5)
    precision = world.prior.information()
    covariance = torch.linalg.inv(MATRIX.T @ MATRIX / STD**2 + precision)
    mean = world.prior.mean()
    guess = mean + (released - mean @ MATRIX.T) @ MATRIX @ covariance / STD**2
    errors = (guess - truth).square().sum(1)
    spread = float(errors.std()) / count**0.5
    # Enough draws for 4.5 standard errors to settle one per cent.
    assert 4.5 * spread < 0.01 * found.total
    assert float(errors.mean()) == pytest.approx(found.total, abs=4.5 * spread)
    # Any other attack is worse: without the prior, and with a wrong shrinkage.
    for other in (released @ torch.linalg.pinv(MATRIX).T, mean + 1.2 * (guess - mean)):
        assert float((other - truth).square().sum(1).mean()) > found.total


def test_a_batch_is_bounded_together():
    # Equal labels: the mean gradient shows the sum of the examples and nothing else.
    single = value(BayesianCramerRao(draws=2)(linear_world(GaussianNoise(std=STD))))
    double = value(
        BayesianCramerRao(draws=2)(linear_world(GaussianNoise(std=STD), batch_size=2))
    )
    assert (double.unknowns, double.batch_size) == (2 * DIMENSION, 2)
    half = MATRIX.repeat(1, 2) / 2
    information = half.T @ half / STD**2
    prior = torch.eye(2 * DIMENSION, dtype=torch.float64) / 1.3**2
    expected = float(torch.linalg.inv(information + prior).trace())
    assert double.total == pytest.approx(expected, rel=1e-10)
    assert double.total > 2 * single.total
    assert any("matching" in sentence for sentence in double.assumptions)
    assert not any("matching" in sentence for sentence in single.assumptions)


@pytest.mark.parametrize("std", [1e-3, 0.05, 1.0, 20.0])
def test_weaker_bounds_lie_below_and_stronger_demands_above(std):
    world = network_world(GaussianNoise(std=std))
    found = value(BayesianCramerRao(draws=6)(world))
    assert found.details["trace_bound"] <= found.total
    # The same draws: tr J⁻¹ is convex, and a prior only adds information.
    assert found.total <= value(CramerRao(draws=6)(world)).total
    assert found.total <= found.details["prior_variance"] * (1 + 1e-9)


def test_formulas_are_ordered_for_any_information():
    for key in range(20):
        root, other = normal(9, 5, key=key), normal(7, 5, key=100 + key)
        fisher, prior = root.T @ root, other.T @ other
        weak = trace_bound(float(fisher.trace()), float(prior.trace()), 5)
        strong = bayesian_cramer_rao_bound(fisher, prior)
        assert weak <= strong <= float(unbiased_cramer_rao_bound(fisher).sum())
        assert trace_of_inverse(fisher) == pytest.approx(
            float(torch.linalg.inv(fisher).trace())
        )
    same = torch.eye(5, dtype=torch.float64)
    equal = trace_bound(5.0, 15.0, 5)
    assert bayesian_cramer_rao_bound(same, 3 * same) == pytest.approx(equal)
    with pytest.raises(InvalidInput, match="singular in float64"):
        unbiased_cramer_rao_bound(torch.ones(3, 3))
    with pytest.raises(InvalidInput, match="singular in float64"):
        trace_of_inverse(torch.diag(torch.tensor([1.0, 1e-16]).double()))


# --- Fisher information leakage ------------------------------------------------------


def leakage(**options):
    return exhume.bound("fisher-information-leakage", **options)


@pytest.mark.parametrize("dfil", [1.342, 0.02631])
def test_an_attack_that_shrinks_beats_the_bound_of_unbiased_attacks(dfil):
    # The reference: prior std .2, tr JᵀJ / d = 18.63, noise 5 and .7.
    std = (float(MATRIX.square().sum()) / DIMENSION * dfil) ** 0.5
    prior = gaussian_prior(0.2, DIMENSION)
    world = linear_world(GaussianNoise(std=std), prior=prior)
    found = value(leakage()(world))
    assert found.mse == pytest.approx(dfil)
    assert found.binds is Binds.UNBIASED_ATTACKS
    floor = value(BayesianCramerRao(draws=2)(world))
    assert floor.mse < found.mse
    if dfil > 1:
        assert floor.mse == pytest.approx(0.0389, abs=1e-4)
    truth = prior.sample(20_000, key=1)
    released = truth @ MATRIX.T + std * normal(20_000, OBSERVED, key=2)
    covariance = torch.linalg.inv(
        MATRIX.T @ MATRIX / std**2 + torch.eye(DIMENSION).double() / 0.2**2
    )
    guess = 0.5 + (released - 0.5 * MATRIX.sum(1)) @ MATRIX @ covariance / std**2
    errors = (guess - truth).square().mean(1)
    spread = float(errors.std()) / 20_000**0.5
    assert float(errors.mean()) == pytest.approx(floor.mse, abs=4.5 * spread)
    assert float(errors.mean()) + 4.5 * spread < found.mse
    # The unbiased attack does not beat it, on the whole nor in any attribute.
    unbiased = (released @ torch.linalg.pinv(MATRIX).T - truth).square()
    assert float(unbiased.mean()) > found.mse
    least = found.details["variance_of_any_attribute"]
    assert float(unbiased.mean(0).min()) > least
    assert least < found.mse


def test_leakage_is_read_off_the_information():
    information = MATRIX.T @ MATRIX / STD**2
    found = value(leakage()(linear_world(GaussianNoise(std=STD)))).details
    trace, norm = (
        float(information.trace()),
        float(torch.linalg.eigvalsh(information)[-1]),
    )
    assert found["fil"] == pytest.approx(fisher_information_loss(norm))
    expected = diagonal_fisher_information_loss(trace, DIMENSION)
    assert found["dfil"] == pytest.approx(expected)
    assert fisher_information_loss(9.0) == 3
    assert diagonal_fisher_information_loss(8.0, 2) == 2


def test_the_largest_eigenvalue_needs_no_matrix(monkeypatch):
    world = network_world(GaussianNoise(std=0.05), batch_size=3)
    inputs = normal(3, 6, key=1)
    (released, _) = information_maps(world, [inputs, -inputs], key=0)
    dense = fisher_information(released, None, inputs)
    largest = float(torch.linalg.eigvalsh(dense)[-1])
    assert fisher_spectral_norm(released, inputs) == pytest.approx(largest, rel=1e-5)
    exact = value(leakage()(world))
    monkeypatch.setattr("exhume.bounds.fisher_information_leakage._DENSE", 0)
    sketched = value(leakage()(world))
    assert sketched.total == pytest.approx(
        exact.total, abs=4 * (exact.standard_error + sketched.standard_error)
    )
    assert sketched.total != exact.total
    assert sketched.details["fil"] == pytest.approx(exact.details["fil"], rel=1e-5)


def test_leakage_is_evaluated_at_public_examples_without_a_prior():
    world = replace(network_world(GaussianNoise(std=0.05)), prior=None)
    assert "nowhere to evaluate" in refusal(leakage()(world))
    inputs = normal(1, 6, key=1).float() + 0.01 * normal(5, 6, key=2).float()
    public = Batch(inputs, torch.zeros(5, dtype=torch.long), world.batch.spec)
    found = value(leakage()(replace(world, public=public)))
    assert found.details["draws"] == 5
    other = value(leakage()(replace(world, public=public.select(torch.arange(2)))))
    assert other.details["draws"] == 2


def test_a_release_that_jumps_has_no_leakage_number():
    relu = network_world(GaussianNoise(std=0.1), activation=nn.ReLU())
    assert "jumps as the data move" in refusal(leakage()(relu))


# --- Monte Carlo ---------------------------------------------------------------------


def test_jackknife_removes_the_bias_of_a_function_of_a_mean():
    # The square of a sample mean overstates the square of the mean by variance / n.
    draws = normal(4000, 6, key=0) + 2
    results = []
    for row in draws:
        without = ((row.sum() - row) / 5).square()
        results.append(jackknife(float(row.mean().square()), without))
    corrected, errors = torch.tensor(results, dtype=torch.float64).T
    spread = float(corrected.std())
    assert float(corrected.mean()) == pytest.approx(4, abs=4.5 * spread / 4000**0.5)
    plain = draws.mean(1).square().mean()
    assert float(plain) == pytest.approx(4 + 1 / 6, abs=4.5 * spread / 4000**0.5)
    assert float(errors.square().mean().sqrt()) == pytest.approx(spread, rel=0.1)


def test_the_jackknife_of_a_diagonal_removes_the_bias_of_every_coordinate():
    # 1/m of the mean m of n draws overstates 1/E, coordinate by coordinate.
    n, centre = 6, torch.tensor([1.0, 4.0], dtype=torch.float64)
    plain, fixed = [], []
    for row in (1 + 0.3 * normal(2000, n, key=3).clamp(-2, 2)).unbind():
        draws = row[:, None] * centre
        whole = 1 / draws.mean(dim=0)
        without = (n - 1) / (draws.sum(dim=0) - draws)
        pairs = zip(whole.unbind(), without.unbind(1), strict=True)
        total = sum(jackknife(float(w), o)[0] for w, o in pairs)
        found = jackknifed_diagonal(whole, without, total)
        assert float(found.sum()) == pytest.approx(total)
        plain.append(whole)
        fixed.append(found)
    biases = [(torch.stack(v).mean(0) * centre - 1).abs().max() for v in (plain, fixed)]
    assert biases[1] < 0.4 * biases[0]


def test_a_jackknifed_diagonal_is_never_negative_and_sums_to_the_total():
    whole = torch.tensor([1.0, 1.0])
    without = torch.tensor([[2.5, 1.0], [2.5, 1.0]])
    found = jackknifed_diagonal(whole, without, 0.5)
    assert found.tolist() == [0.0, 0.5]
    nothing = jackknifed_diagonal(whole, 3 * torch.ones(2, 2), 0.5)
    assert nothing.tolist() == [0.25, 0.25]


def test_the_map_of_the_bayesian_bound_sums_to_its_total():
    for draws in (2, 5):
        world = network_world(GaussianNoise(std=0.05), batch_size=2)
        found = value(BayesianCramerRao(draws=draws)(world))
        assert found.per_coordinate is not None
        assert abs(found.details["monte_carlo_bias"]) > 1e-4 * found.total
        assert float(found.per_coordinate.sum()) == pytest.approx(found.total)
        assert float(found.per_coordinate.min()) >= 0


def test_few_draws_agree_with_many_within_the_stated_error(monkeypatch):
    world = network_world(GaussianNoise(std=0.05))
    many = value(BayesianCramerRao(draws=4096)(world))
    monkeypatch.setattr(held_out, "AFFORDABLE", 0)
    few = [value(BayesianCramerRao(draws=8)(world, key=k)) for k in range(1, 7)]
    assert many.standard_error < few[0].standard_error
    plug_in = [b.total + b.details["monte_carlo_bias"] - many.total for b in few]
    assert sum(plug_in) / 6 > 0  # the inverse is convex: too high without correction
    mean_error = sum(b.total - many.total for b in few) / 6
    stated = sum(b.standard_error**2 for b in few) ** 0.5 / 6
    assert abs(mean_error) < 4 * (stated + many.standard_error)


# --- defenses ------------------------------------------------------------------------


def test_defenses_before_the_noise_change_the_bound():
    noise = GaussianNoise(std=0.05)
    bound = BayesianCramerRao(draws=4)
    plain = value(bound(network_world(noise))).total
    clipped = value(bound(network_world(Clipping(max_norm=0.1), noise))).total
    assert clipped > 1.2 * plain
    previous = plain
    for ratio in (0.3, 0.6, 0.9):
        pruning = Pruning(ratio=ratio, kind="random")
        pruned = value(bound(network_world(pruning, noise))).total
        assert pruned > previous
        previous = pruned


def test_prior_is_the_worlds_own_unless_given():
    world = network_world(GaussianNoise(std=0.5))
    bound = BayesianCramerRao(draws=3)
    sharp = value(bound(world, gaussian_prior(0.1, 6)))
    assert sharp.total < value(bound(world)).total
    fitted = replace(gaussian_prior(0.5, 6), fit_check=1.7)
    assert value(bound(world, fitted)).details["prior_fit"] == 1.7
    assert "prior_fit" not in sharp.details


@pytest.mark.parametrize(
    ("defenses", "reason"),
    [
        ((), "no noise is added"),
        ((GaussianNoise(std=0.0),), "no noise is added"),
        ((Clipping(max_norm=1.0),), "no noise is added"),
        (
            (GaussianNoise(std=0.1, only=("0.*",)),),
            r"released without noise, infinite information: 2\.weight, 2\.bias",
        ),
        ((Pruning(ratio=0.5), GaussianNoise(std=0.1)), "jumps where that choice"),
        ((GaussianNoise(std=0.1), Clipping(max_norm=1.0)), "is not Gaussian: noise"),
    ],
)
def test_reasons_to_refuse(defenses, reason):
    found = refusal(BayesianCramerRao(draws=2)(network_world(*defenses)))
    assert re.search(reason, found)


def test_what_float64_cannot_invert_is_refused():
    # Half of the directions are seen with 20 digits, the others not at all.
    world = linear_world(GaussianNoise(std=1e-10), batch_size=2)
    assert "noise is too weak" in refusal(BayesianCramerRao(draws=2)(world))


def test_priors_without_information_are_refused():
    world = network_world(GaussianNoise(std=0.1))
    bound = BayesianCramerRao(draws=2)
    found = refusal(bound(world, TotalVariationDensity(weight=1.0)))
    assert "'total-variation' has no information and no sample" in found
    assert "no prior is given" in refusal(bound(replace(world, prior=None)))


class _Leaky(GaussianNoise):
    """Noise whose variance is std² times the squared exact update plus a floor."""

    def push(self, law, plan, observed):
        def variance_at(task, model, candidate):
            exact = model.forward_func(task, candidate)
            return {n: self.std**2 * (1e-3 + t.square()) for n, t in exact.items()}

        pushed = super().push(law, plan, observed)
        return replace(pushed, variance_at=variance_at)


def test_variance_that_depends_on_the_data_counts_as_information():
    strong, weak = (network_world(_Leaky(std=std)) for std in (1e6, 1e-2))
    bound = BayesianCramerRao(draws=2)
    # However strong the noise is, its shape tells the same; fixed noise tells nothing.
    prior = 6 * 0.5**2
    leaking = value(bound(strong))
    assert leaking.total < 0.9 * prior
    fixed = value(bound(network_world(GaussianNoise(std=1e6))))
    assert fixed.total == pytest.approx(prior, rel=1e-3)
    assert value(bound(weak)).total < leaking.total


def test_a_release_that_jumps_is_refused_because_its_number_would_be_wrong():
    # Gradient of the bias behind a ReLU: 2 (x₊ + 5) for x > 0 and 0 below, so that a
    # release shows the sign of x although its derivative hardly sees it.
    relu = network_world(GaussianNoise(std=0.1), activation=nn.ReLU())
    found = refusal(BayesianCramerRao(draws=2)(relu))
    assert "jumps as the data move" in found
    std = 3.0
    truth = normal(20_000, 1, key=0)
    slope = torch.where(truth > 0, 2.0, 0.0)
    wrong = bayesian_cramer_rao_bound(
        (slope**2 / std**2).mean().reshape(1, 1), torch.eye(1).double()
    )
    released = torch.where(truth > 0, 2 * (truth + 5), 0.0)
    released = released + std * normal(20_000, 1, key=1)
    guess = torch.where(released > 5, 0.8, -0.8)
    errors = (guess - truth).square()
    assert float(errors.mean()) + 4.5 * float(errors.std()) / 20_000**0.5 < wrong


def test_options_are_checked():
    with pytest.raises(InvalidInput, match="draws is 1"):
        exhume.bound("bayesian-cramer-rao", draws=1)
