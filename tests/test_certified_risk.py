"""Accounting and certified-risk bounds against published numbers and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

import exhume
from exhume.bounds import accounting
from exhume.bounds.accounting import Epsilon, epsilon, epsilon_of, type_two_error
from exhume.bounds.bayes_security import approximation_error, bayes_security
from exhume.bounds.hammersley_chapman_robbins import (
    gaussian_renyi_two,
    hammersley_chapman_robbins_bound,
)
from exhume.bounds.no_prior_gaussian import (
    mean_estimation_error,
    mean_estimation_success,
)
from exhume.bounds.reconstruction_robustness import (
    gaussian_reconstruction_risk,
    log_chance_of_gaussian,
)
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.bound import Binds, BoundValue, NotApplicable, RiskValue
from exhume.problem.privacy import Guarantee

RATE, STEPS, DELTA = 0.01, 1000, 1e-5
SHAPES = {"w": (4,)}


def guarantee(multiplier=1.0, unit="example"):
    clipped = Guarantee(SHAPES).clipped(["w"], 1.0, unit)
    return clipped.plus_noise({"w": multiplier**2})


def laplace(multiplier):
    """Scale b = z ‖·‖₁ with a 1-norm of at most √4 on the unit ball."""
    clipped = Guarantee(SHAPES).clipped(["w"], 1.0, "example")
    return clipped.plus_noise({"w": 2 * (2 * multiplier) ** 2}, "laplace")


class LaplaceLike(GaussianNoise):
    """Declares the noise of Laplace for accounting."""

    def account(self, before, plan):
        return before.plus_noise(dict.fromkeys(plan.covers, self.std**2), "laplace")


def world(*defenses, batch_size=1, prior=None, public=None, high=None):
    spec = exhume.EventSpec.vector(3, None if high is None else 0.0, high)
    x = torch.rand(batch_size, 3, generator=torch.Generator().manual_seed(0))
    batch = exhume.Batch(x, torch.zeros(batch_size, dtype=torch.long), spec)
    mechanism = exhume.Mechanism(Gradient(), defenses)
    return exhume.World(exhume.Task(nn.Linear(3, 2)), batch, mechanism, public, prior)


def prior(std=1.0):
    covariance = std**2 * torch.eye(3, dtype=torch.float64)
    return GaussianDensity.from_covariance(torch.zeros(3).double(), covariance)


PAIR = (Clipping(max_norm=2.0), GaussianNoise(std=2.0))


# --- epsilon --------------------------------------------------------------------------


def test_epsilon_of_sampled_training_is_that_of_the_accountants():
    found = epsilon(guarantee(), DELTA, steps=STEPS, sampling_rate=RATE)
    assert found.value == pytest.approx(1.828, abs=5e-4)
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    event = PoissonSampledDpEvent(RATE, GaussianDpEvent(1.0))
    other = PLDAccountant().compose(event, STEPS).get_epsilon(DELTA)
    assert found.value == pytest.approx(other, rel=1e-3)
    assert found.value < RdpAccountant().compose(event, STEPS).get_epsilon(DELTA)
    replaced = epsilon(
        guarantee(), DELTA, steps=STEPS, sampling_rate=RATE, adjacency="replace"
    )
    assert replaced.value > found.value


def test_epsilon_names_what_it_is_about():
    one = epsilon(guarantee(), DELTA)
    assert one.value == pytest.approx(4.377, abs=5e-4)
    assert one.sentence == (
        "ε = 4.377 at δ = 1e-05 for one release: add-or-remove one example, taking "
        "part in every release"
    )
    two = epsilon(guarantee(unit="client"), DELTA, adjacency="replace")
    assert two.value == pytest.approx(9.997, abs=5e-4)
    assert "replace one client" in two.sentence
    sampled = Epsilon(1.0, DELTA, "replace", "client", 0.1, 5)
    assert "5 releases: replace one client, Poisson-sampled at rate 0.1" in (
        sampled.sentence
    )


@pytest.mark.parametrize(
    ("smallest", "expected"), [(1.0, 4.377), (0.5, 9.997), (0.1, 91.8), (0.0, math.inf)]
)
def test_shaped_noise_costs_what_its_worst_direction_costs(smallest, expected):
    std = torch.tensor([1.0, 1.0, smallest, 5.0], dtype=torch.float64)
    shaped = Guarantee(SHAPES).clipped(["w"], 1.0, "client").plus_noise({"w": std**2})
    found = epsilon(shaped, DELTA)
    assert found.value == pytest.approx(expected, rel=5e-4)
    assert (found.value == math.inf) == ("ε is infinite: " in found.sentence)
    assert (found.value == math.inf) == (len(found.reasons) > 0)


def test_releases_without_sampling_add_up():
    several = epsilon(guarantee(3.0), DELTA, steps=9)
    assert several.value == pytest.approx(epsilon(guarantee(1.0), DELTA).value)


def test_laplace_noise_is_pure():
    assert epsilon(laplace(0.5), 1e-9).value == pytest.approx(2.0, rel=1e-3)
    assert epsilon(laplace(0.5), 1e-9, adjacency="replace").value == pytest.approx(
        4.0, rel=1e-3
    )
    assert epsilon(laplace(0.5), 0.1, steps=3).value < 6
    with pytest.raises(InvalidInput, match="sampled Laplace noise"):
        epsilon(laplace(1.0), DELTA, sampling_rate=0.1, adjacency="replace")


def test_little_noise_takes_little_memory():
    huge = epsilon(guarantee(1e-3), DELTA, sampling_rate=0.5)
    assert huge.value == pytest.approx(5e5, rel=0.05)


def test_epsilon_of_a_world():
    assert epsilon_of(world(*PAIR), DELTA).value == pytest.approx(4.377, abs=5e-4)
    assert epsilon_of(world(), DELTA).value == math.inf
    nothing = torch.zeros(4, dtype=torch.bool)
    masked = Guarantee(SHAPES).clipped(["w"], 1.0, "client").masked({"w": nothing})
    assert epsilon(masked, DELTA).value == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"steps": 0}, "steps is 0"),
        ({"sampling_rate": 0.0}, "sampling_rate is 0.0"),
        ({"adjacency": "swap"}, "expected 'add-or-remove' or 'replace'"),
    ],
)
def test_options_of_epsilon_are_checked(options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        epsilon(guarantee(), **{"delta": DELTA, **options})


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setattr(accounting, "find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match=r"pip install exhume\[dp\]"):
        epsilon(guarantee(), DELTA)
    bound = exhume.bound("reconstruction-robustness", sampling_rate=0.5)
    found = bound(world(*PAIR))
    assert isinstance(found, NotApplicable)
    assert "pip install exhume[dp]" in found.reason
    # Closed forms need no accountant.
    assert isinstance(
        exhume.bound("reconstruction-robustness")(world(*PAIR)), RiskValue
    )
    assert isinstance(exhume.bound("bayes-security")(world(*PAIR)), RiskValue)


# --- reconstruction robustness --------------------------------------------------------


@pytest.mark.parametrize(("chance", "expected"), [(0.001, 0.01830), (0.1, 0.38914)])
def test_reconstruction_robustness_in_closed_form_and_from_the_curve(chance, expected):
    closed = gaussian_reconstruction_risk(math.log(chance), 1.0)
    assert closed == pytest.approx(expected, abs=5e-6)
    curve = 1 - type_two_error(guarantee(), chance)
    assert curve == pytest.approx(closed, abs=1e-5)
    many = 1 - type_two_error(guarantee(5.0), chance, steps=25)
    assert many == pytest.approx(closed, abs=1e-5)
    assert gaussian_reconstruction_risk(math.log(chance), 0.0) == pytest.approx(chance)


def hayes_monte_carlo(chance, rate, sigma, steps, draws, seed):
    """Estimate γ by the log-likelihood ratio of simulated runs (Hayes et al. 2023)."""
    source = np.random.default_rng(seed)
    ratios = {}
    for present in (False, True):
        total = np.zeros(draws)
        for _ in range(steps):
            x = sigma * source.standard_normal(draws)
            if present:
                x += source.random(draws) < rate
            shifted = np.exp((2 * x - 1) / (2 * sigma**2))
            total += np.log1p(rate * (shifted - 1))
        ratios[present] = total
    threshold = np.quantile(ratios[False], 1 - chance)
    return float((ratios[True] > threshold).mean())


def test_reconstruction_robustness_of_sampled_training_is_the_simulated_one():
    found = 1 - type_two_error(guarantee(), 0.1, steps=STEPS, sampling_rate=RATE)
    assert found == pytest.approx(0.1942, abs=5e-5)
    simulated = hayes_monte_carlo(0.1, RATE, 1.0, STEPS, draws=20_000, seed=0)
    assert simulated == pytest.approx(found, abs=0.005)
    # The guarantee of pure ε alone says much less.
    assert 0.1 * math.exp(1.828) > 3 * found


def test_no_attack_succeeds_more_often_than_reconstruction_robustness_says():
    # Which of ten unit vectors was released with noise 1? The likelihood decides.
    source = torch.Generator().manual_seed(0)
    count = 40_000
    noise = torch.randn(count, 10, generator=source, dtype=torch.float64)
    secret = torch.randint(0, 10, (count,), generator=source)
    released = noise + torch.eye(10, dtype=torch.float64)[secret]
    success = float((released.argmax(dim=1) == secret).double().mean())
    assert 0.2 < success < gaussian_reconstruction_risk(math.log(0.1), 1.0)


def test_the_chance_of_a_guess_is_never_understated():
    source = np.random.default_rng(0)
    variances, counts = np.array([2.0, 0.5, 0.1]), np.array([1.0, 3.0, 6.0])
    draws = source.standard_normal((40_000, 10)) ** 2 @ np.repeat(variances, [1, 3, 6])
    for radius in (0.05, 0.1, 0.2, 0.4):
        share = float((draws <= 10 * radius).mean())
        bound = math.exp(log_chance_of_gaussian(variances, counts, radius))
        assert share <= bound <= 12 * share + 1e-3
    assert log_chance_of_gaussian(variances, counts, 0.41) == 0
    # For equal variances the exact law is χ²; what is lost grows as log d.
    for dimension in (50, 700):
        exact = stats.chi2.logcdf(dimension * 0.2, dimension)
        found = log_chance_of_gaussian(np.ones(1), np.array([dimension]), 0.2)
        assert exact < found < exact + 5


def test_the_radius_of_a_success_sets_the_chance():
    bound = exhume.bound("reconstruction-robustness", radius=0.01)
    found = bound(world(*PAIR, prior=prior()))
    assert isinstance(found, RiskValue)
    exact = stats.chi2.cdf(3 * 0.01, 3)
    assert exact < found.details["chance"] < 5 * exact
    expected = stats.norm.cdf(stats.norm.ppf(found.details["chance"]) + 1)
    assert found.value == pytest.approx(expected)
    assert found.binds is Binds.KNOWN_CHANCE
    # A density of low rank has the same chance as the full one that it stands for.
    basis, variances = torch.eye(3).double()[:, :1], torch.tensor([1.0]).double()
    low_rank = GaussianDensity(torch.zeros(3).double(), basis, variances, 1.0)
    assert bound(world(*PAIR, prior=low_rank)).value == pytest.approx(found.value)
    without = bound(world(*PAIR))
    assert isinstance(without, NotApplicable)
    assert "known for the prior 'gaussian' only" in without.reason
    # Far below what a float can hold, strong leakage still counts.
    tiny = gaussian_reconstruction_risk(-1000.0, 60.0)
    assert tiny == pytest.approx(1.0)
    assert gaussian_reconstruction_risk(-1000.0, 20.0) < 1e-50


def test_reconstruction_robustness_of_a_world():
    options = {"chance": 0.1, "steps": STEPS, "sampling_rate": RATE}
    found = exhume.bound("reconstruction-robustness", **options)(world(*PAIR))
    assert found.value == pytest.approx(0.1942, abs=5e-5)
    assert any("does not see who does" in sentence for sentence in found.assumptions)
    noisy = world(Clipping(max_norm=1.0), LaplaceLike(std=20.0))
    pure = exhume.bound("reconstruction-robustness", chance=0.1)(noisy)
    z = 20 / 2**0.5 / 8**0.5
    assert 0.1 < pure.value <= 0.1 * math.exp(1 / z) * 1.001


# --- Hammersley-Chapman-Robbins, Bayes security, no prior -----------------------------


def test_hammersley_chapman_robbins_numbers():
    for renyi, expected in ((0.1, 2.377), (1.0, 0.1455), (4.0, 0.0047)):
        found = hammersley_chapman_robbins_bound(1.0, renyi)
        assert found == pytest.approx(expected, abs=5e-4 if renyi < 1 else 5e-5)
    assert hammersley_chapman_robbins_bound(1.0, 1e6) == 0
    # ∫ p²/q of two Gaussians, by quadrature.
    shift = 2 / 3

    def ratio(x):
        return stats.norm.pdf(x, shift) ** 2 / stats.norm.pdf(x)

    integral = integrate.quad(ratio, -10, 12)[0]
    assert gaussian_renyi_two(3.0, 1, 2) == pytest.approx(math.log(integral))
    assert gaussian_renyi_two(3.0, 5, 2) == pytest.approx(5 * math.log(integral))


def test_hammersley_chapman_robbins_binds_the_unbiased_attack_and_no_other():
    # x in [0, 1] is released as x + N(0, z²); the sensitivity of adding is 1/2 about
    # the centre, so replacing moves by 1 = 2 · ½.
    z = 2.0
    multiplier = z / 0.5
    floor = hammersley_chapman_robbins_bound(1.0, gaussian_renyi_two(multiplier, 1, 2))
    source = torch.Generator().manual_seed(0)
    noise = z * torch.randn(20_000, generator=source, dtype=torch.float64)
    assert float(noise.square().mean()) > floor
    weak = gaussian_renyi_two(10.0, 1, 2)
    assert hammersley_chapman_robbins_bound(1.0, weak) > 1 / 4  # a constant guess


def test_hammersley_chapman_robbins_of_a_world():
    bound = exhume.bound("hammersley-chapman-robbins")
    found = bound(world(*PAIR, high=2.0, batch_size=2))
    assert isinstance(found, BoundValue)
    assert found.binds is Binds.UNBIASED_ATTACKS
    assert found.mse == pytest.approx(1 / math.expm1(4))
    assert found.details["constant_guess"] == 1
    unbounded = bound(world(*PAIR))
    assert isinstance(unbounded, NotApplicable)
    assert "give the option diameter" in unbounded.reason
    given = exhume.bound("hammersley-chapman-robbins", diameter=2.0, steps=4)
    assert given(world(*PAIR)).mse == pytest.approx(1 / math.expm1(16))


def test_bayes_security_numbers():
    assert bayes_security(1.0, STEPS, RATE, 2) == pytest.approx(0.7518, abs=5e-5)
    assert bayes_security(1.0, STEPS, RATE, 1) == pytest.approx(0.8744, abs=5e-5)
    assert approximation_error(1.0, STEPS, RATE) == pytest.approx(1.57, abs=5e-3)
    # Without sampling the closed form is exact: 1 − the total variation.
    assert approximation_error(1.0, STEPS, 1.0) == 0
    for z, steps, moved in ((2.0, 1, 2), (3.0, 4, 1)):
        distance = 2 * stats.norm.cdf(moved * steps**0.5 / z / 2) - 1
        assert bayes_security(z, steps, 1.0, moved) == pytest.approx(1 - distance)


def test_bayes_security_says_when_it_is_an_approximation():
    options = {"steps": STEPS, "sampling_rate": RATE}
    sampled = exhume.bound("bayes-security", **options)(world(*PAIR))
    assert sampled.binds is Binds.NOBODY
    assert sampled.value == pytest.approx(1 - 0.7518, abs=5e-5)
    added = exhume.bound("bayes-security", **options, adjacency="add-or-remove")
    assert added(world(*PAIR)).details["bayes_security"] == pytest.approx(
        0.8744, abs=5e-5
    )
    # It is not strict: riskcal's advantage is another number, and may be larger.
    from riskcal.calibration import get_advantage_for_dpsgd

    exact = get_advantage_for_dpsgd(
        noise_multiplier=1.0, sample_rate=RATE, num_steps=STEPS
    )
    assert exact == pytest.approx(0.161, abs=5e-4)
    assert exact > added(world(*PAIR)).value
    full = exhume.bound("bayes-security", adjacency="add-or-remove")(world(*PAIR))
    assert full.binds is Binds.EVERY_ATTACK
    assert full.value == pytest.approx(2 * stats.norm.cdf(0.5) - 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_test_of_real_releases_gains_more_than_bayes_security_says(scale):
    one = world(*PAIR)
    plans = one.mechanism.calibrate(one.task, None, 0)
    source = torch.Generator().manual_seed(0)
    with_client = {
        name: scale * torch.randn(p.shape, generator=source)
        for name, p in one.task.parameters().items()
    }
    without = {name: torch.zeros_like(t) for name, t in with_client.items()}
    seen = {}
    for present, update in ((True, with_client), (False, without)):
        # The likelihood ratio grows with the product with what is looked for.
        seen[present] = torch.tensor(
            [
                sum(
                    float((with_client[n] * t).sum())
                    for n, t in one.mechanism.release(update, plans, key).items()
                )
                for key in range(2000 * present, 2000 * (present + 1))
            ]
        )
    gap = stats.ks_2samp(seen[True], seen[False]).statistic
    bound = exhume.bound("bayes-security", adjacency="add-or-remove")(one).value
    limit = 4 / (2 * 1000) ** 0.5
    assert gap < bound + limit
    if scale >= 1:
        # An update that is clipped moves by all of the sensitivity: the bound is met.
        assert gap > bound - limit


@pytest.mark.parametrize(("unknowns", "sigma"), [(4, 0.5), (30, 2.0)])
def test_the_attacker_without_a_prior_is_the_simulated_one(unknowns, sigma):
    source = torch.Generator().manual_seed(0)
    secret = 3 * torch.randn(unknowns, generator=source, dtype=torch.float64)
    norm = float(torch.linalg.vector_norm(secret))
    clip, count = 1.7, 20_000
    noise = torch.randn(count, unknowns, generator=source, dtype=torch.float64)
    released = clip * secret / norm + clip * sigma * noise
    errors = (released * norm / clip - secret).square().mean(dim=1)
    expected = mean_estimation_error(sigma, norm**2)
    spread = float(errors.std()) / count**0.5
    assert float(errors.mean()) == pytest.approx(expected, abs=4 * spread)
    for factor in (0.5, 0.9, 1.3):
        share = float((errors <= factor * expected).double().mean())
        exact = mean_estimation_success(factor * expected, unknowns, expected)
        limit = 4 * (exact * (1 - exact) / count) ** 0.5 + 1e-3
        assert share == pytest.approx(exact, abs=limit)


def test_no_prior_gaussian_of_a_world():
    bound = exhume.bound("no-prior-gaussian", radius=1.0, draws=4000)
    found = bound(world(*PAIR, prior=prior(2.0)))
    assert found.binds is Binds.NO_PRIOR
    assert found.mse == pytest.approx(12, abs=4 * found.mse_standard_error)
    success = mean_estimation_success(1.0, 3, found.mse)
    assert found.details["success"] == pytest.approx(success)
    # A client's batch is clipped as one vector: twice the norm, the same noise.
    double = bound(world(*PAIR, prior=prior(2.0), batch_size=2))
    assert double.mse == pytest.approx(2 * found.mse)
    x = torch.ones(5, 3) * torch.arange(1, 6).reshape(5, 1)
    public = exhume.Batch(x, torch.zeros(5, dtype=torch.long), world().batch.spec)
    from_public = bound(world(*PAIR, public=public))
    assert from_public.mse == pytest.approx(3 * 11)
    nothing = bound(world(*PAIR))
    assert isinstance(nothing, NotApplicable)
    assert "size of an example is not known" in nothing.reason
    averaged = exhume.bound("no-prior-gaussian", steps=4)(world(*PAIR, public=public))
    assert averaged.mse == pytest.approx(3 * 11 / 4)


# --- what all of them refuse ----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bayes-security", "hammersley-chapman-robbins", "no-prior-gaussian"]
)
def test_bounds_for_gaussian_noise_refuse_other_noise(name):
    found = exhume.bound(name)(world(Clipping(max_norm=1.0), LaplaceLike(std=1.0)))
    assert isinstance(found, NotApplicable)
    assert found.reason == "the noise is laplace; the bound is for Gaussian"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("bayes-security", {"sampling_rate": 2.0}, "sampling_rate is 2.0"),
        ("fisher-information-leakage", {"draws": 1}, "draws is 1"),
        ("hammersley-chapman-robbins", {"diameter": 0.0}, "diameter is 0.0"),
        ("no-prior-gaussian", {"radius": -1.0}, "radius is -1.0"),
        ("no-prior-gaussian", {"draws": 1}, "draws is 1"),
        ("reconstruction-robustness", {"chance": 1.0}, "chance is 1.0"),
        ("reconstruction-robustness", {"radius": 0.0}, "radius is 0.0"),
        ("reconstruction-robustness", {"steps": 0}, "steps is 0"),
    ],
)
def test_options_of_bounds_are_checked(name, options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        exhume.bound(name, **options)
