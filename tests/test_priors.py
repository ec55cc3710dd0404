"""Priors: what each of them claims, against independent references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

import exhume
from conformance.test_priors import correlated as examples
from conformance.test_priors import task_for
from exhume.data.digits import Digits
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.priors.batch_norm_statistics import (
    BatchNormStatistics,
    BatchNormStatisticsDensity,
    batch_norm_discrepancy,
)
from exhume.priors.gaussian import (
    Gaussian,
    GaussianDensity,
    gaussian_log_likelihood,
    mahalanobis_per_dimension,
    precision_product,
    principal_directions,
    probabilistic_principal_components,
    shrunk_covariance,
)
from exhume.priors.total_variation import (
    TotalVariation,
    homogeneous_weight,
    lagged_diffusivity,
    total_variation,
)
from exhume.problem.batch import Batch
from exhume.problem.event import EventSpec

GRAY = EventSpec.image(1, 6, 6)
COLOUR = EventSpec.image(3, 4, 4)
VECTOR = EventSpec.vector(7)
SPECS = [GRAY, COLOUR, VECTOR]


def fit(name, options, spec):
    return exhume.prior(name, **options).fit(
        examples(spec, 30, "public"), task_for(spec)
    )


# --- Gaussian ------------------------------------------------------------------------


def spectrum(dimension, rank, *key):
    """A random spectrum and the dense covariance that it stands for."""
    source = generator(0, *key)
    square = torch.randn(dimension, dimension, generator=source, dtype=torch.float64)
    basis = torch.linalg.qr(square)[0][:, :rank]
    variances = 0.5 + 3 * torch.rand(rank, generator=source, dtype=torch.float64)
    floor = 0.3
    inside = basis @ basis.T
    dense = basis * variances @ basis.T
    return basis, variances, floor, dense + floor * (torch.eye(dimension) - inside)


@given(dimension=st.integers(1, 12), data=st.data())
@settings(max_examples=30, deadline=None)
def test_precision_product_inverts_the_covariance(dimension, data):
    rank = data.draw(st.integers(1, dimension))
    basis, variances, floor, covariance = spectrum(dimension, rank, dimension, rank)
    r = torch.randn(3, dimension, generator=generator(1), dtype=torch.float64)
    found = precision_product(r, basis, variances, floor)
    torch.testing.assert_close(found, torch.linalg.solve(covariance, r.T).T)


def test_low_rank_equals_dense():
    basis, variances, floor, covariance = spectrum(12, 4, "equal")
    spec = EventSpec.image(3, 2, 2)
    location = torch.rand(spec.shape, generator=generator(2), dtype=torch.float64)
    low = GaussianDensity(location, basis, variances, floor)
    dense = GaussianDensity.from_covariance(location, covariance)
    x, t = examples(spec, 3, "x").inputs, examples(spec, 3, "t").inputs
    torch.testing.assert_close(low.energy(x), dense.energy(x))
    torch.testing.assert_close(low.curvature(x, t), dense.curvature(x, t))
    torch.testing.assert_close(low.information(), dense.information())
    torch.testing.assert_close(low.information(), torch.linalg.inv(covariance))


def test_energy_is_the_log_density_up_to_a_constant():
    _, _, _, covariance = spectrum(7, 7, "log density")
    mean = torch.arange(7.0, dtype=torch.float64)
    density = GaussianDensity.from_covariance(mean, covariance)
    oracle = torch.distributions.MultivariateNormal(mean, covariance)
    x = examples(VECTOR, 4, "x").inputs
    energies = torch.stack([density.energy(row.unsqueeze(0)) for row in x])
    difference = energies + oracle.log_prob(x)
    torch.testing.assert_close(difference, difference[:1].expand(4))
    torch.testing.assert_close(density.energy(x), energies.sum())


def test_samples_have_the_declared_moments():
    basis, variances, floor, covariance = spectrum(6, 2, "moments")
    location = torch.arange(6.0, dtype=torch.float64)
    density = GaussianDensity(location, basis, variances, floor)
    count = 40_000
    drawn = density.sample(count, key=3)
    torch.testing.assert_close(density.mean(), location)
    variance = covariance.diagonal()
    off = (drawn.mean(0) - location).abs() / (variance / count).sqrt()
    assert float(off.max()) < 4.5
    # Var of an entry of a sample covariance is (Σᵢᵢ Σⱼⱼ + Σᵢⱼ²) / N.
    error = (torch.cov(drawn.T) - covariance).abs()
    scale = ((torch.outer(variance, variance) + covariance**2) / count).sqrt()
    assert float((error / scale).max()) < 4.5
    assert torch.equal(drawn, density.sample(count, key=3))
    assert not torch.equal(drawn[:5], density.sample(5, key=4))


def test_information_is_the_covariance_of_the_score():
    basis, variances, floor, _ = spectrum(4, 2, "score")
    density = GaussianDensity(torch.zeros(4).double(), basis, variances, floor)
    x = density.sample(40_000, key=0).requires_grad_()
    (score,) = torch.autograd.grad(density.energy(x), x)
    empirical = score.T @ score / len(x)
    information = density.information()
    spread = information.diagonal().outer(information.diagonal()) + information**2
    assert float(((empirical - information).abs() / (spread / 4e4).sqrt()).max()) < 4.5


def test_ledoit_wolf_shrinkage_is_that_of_scikit_learn():
    batch = examples(GRAY, 20, "wolf")
    density = Gaussian(covariance="ledoit-wolf", ridge=0.0).fit(batch, task_for(GRAY))
    oracle = LedoitWolf().fit(batch.inputs.reshape(20, -1).numpy())
    torch.testing.assert_close(
        density.information(), torch.as_tensor(oracle.precision_), rtol=1e-8, atol=1e-6
    )
    x = torch.randn(4, 9, generator=generator(0), dtype=torch.float64)
    basis, variances = principal_directions(x - x.mean(0))
    _, shrunk, floor = shrunk_covariance(basis, variances, 2.0, 0.25)
    torch.testing.assert_close(shrunk, 0.75 * variances + 0.5)
    assert floor == 0.5


def test_low_rank_fit_is_that_of_scikit_learn():
    batch = examples(GRAY, 200, "pca")
    density = Gaussian(covariance="low-rank", rank=5, ridge=0.0).fit(batch, None)
    oracle = PCA(5).fit(batch.inputs.reshape(200, -1).numpy())
    # scikit-learn divides by n − 1, maximum likelihood by n.
    expected = torch.as_tensor(oracle.get_precision()) * 200 / 199
    torch.testing.assert_close(density.information(), expected, rtol=1e-6, atol=1e-4)
    _, kept, floor = probabilistic_principal_components(
        torch.eye(4).double()[:, :1], torch.tensor([5.0]).double(), 2.0
    )
    assert (float(kept[0]), floor) == (5.0, 1.0)


def test_the_log_likelihood_is_that_of_scipy():
    from scipy.stats import multivariate_normal

    centred = torch.randn(30, 6, generator=generator(0, "rows"), dtype=torch.float64)
    basis, variances = principal_directions(centred)
    spectrum = shrunk_covariance(basis, variances, float(centred.square().mean()), 0.3)
    scatter = centred.T @ centred / 30
    dense = 0.7 * scatter + 0.3 * scatter.trace() / 6 * torch.eye(6)
    oracle = multivariate_normal(cov=dense.numpy()).logpdf(centred.numpy()).mean()
    assert gaussian_log_likelihood(centred, spectrum) == pytest.approx(oracle)


def test_the_default_shrinkage_fits_unseen_faces_where_ledoit_wolf_is_too_narrow():
    faces = exhume.dataset("faces").load()
    seen, unseen = faces.select(range(0, 200, 2)), faces.select(range(1, 200, 2))
    task = task_for(faces.spec)
    default = Gaussian().fit(seen, task)
    narrow = Gaussian(covariance="ledoit-wolf").fit(seen, task)
    assert 0.7 < default.check(unseen) < 1.5
    assert narrow.check(unseen) > 1.3 * default.check(unseen)
    assert default.fit_check == pytest.approx(default.check(unseen), rel=0.3)


@pytest.mark.parametrize("covariance", ["shrinkage", "empirical", "low-rank"])
def test_units_do_not_matter(covariance):
    batch = examples(VECTOR, 40, "units")
    scaled = Batch(1000 * batch.inputs, batch.targets, VECTOR)
    prior = Gaussian(covariance=covariance, rank=3)
    one, other = prior.fit(batch, None), prior.fit(scaled, None)
    torch.testing.assert_close(
        one.energy(batch.inputs[:4]), other.energy(scaled.inputs[:4])
    )
    assert one.fit_check == pytest.approx(other.fit_check)


def test_the_check_of_the_fit_is_one_for_draws_and_not_otherwise():
    _, _, _, covariance = spectrum(7, 7, "check")
    truth = GaussianDensity.from_covariance(torch.zeros(7).double(), covariance)
    draws = truth.sample(3000, key=0)
    batch = Batch(draws, torch.zeros(3000).long(), VECTOR)
    limit = 4.5 * (2 / draws.numel()) ** 0.5
    assert truth.check(batch) == pytest.approx(1, abs=limit)
    weighted = draws @ torch.linalg.inv(covariance)
    assert mahalanobis_per_dimension(draws, weighted) == pytest.approx(
        truth.check(batch)
    )
    wide = GaussianDensity.from_covariance(torch.zeros(7).double(), 4 * covariance)
    assert wide.check(batch) == pytest.approx(0.25, abs=limit)
    # 600 examples are held out of 3000, in one fold.
    fitted = Gaussian(ridge=0.0).fit(batch, None)
    assert fitted.fit_check == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("count", [5, 10, 11, 49])
def test_few_examples_are_enough_to_fit_and_check(count):
    batch = examples(GRAY, count, "few", dtype=torch.float32)
    density = Gaussian().fit(batch, task_for(GRAY))
    assert density.fit_check is not None
    assert 0.1 < density.fit_check < 10
    assert density.mean().dtype == torch.float32
    assert density.sample(3, 0).shape == (3, *GRAY.shape)


def test_an_overfitted_covariance_shows_in_the_check():
    digits = Digits().load()
    public = digits.select(range(40))
    shrunk = Gaussian().fit(public, None)
    empirical = Gaussian(covariance="empirical").fit(public, None)
    assert 0.3 < shrunk.fit_check < 3
    assert empirical.fit_check > 10


def test_gaussian_refuses_what_it_cannot_fit():
    with pytest.raises(InvalidInput, match="4 public example"):
        Gaussian().fit(examples(VECTOR, 4, "few"), None)
    same = Batch(torch.ones(9, 7), torch.zeros(9).long(), VECTOR)
    for covariance in ("shrinkage", "low-rank"):
        with pytest.raises(InvalidInput, match="all public examples are equal"):
            Gaussian(covariance=covariance).fit(same, None)
    with pytest.raises(InvalidInput, match="covariance is singular"):
        Gaussian(covariance="empirical", ridge=0.0).fit(
            examples(GRAY, 10, "flat"), None
        )
    with pytest.raises(InvalidInput, match=r"shape \[2, 1, 6, 6\]; this prior"):
        fit("gaussian", {}, VECTOR).energy(examples(GRAY, 2, "x").inputs)
    for options in ({"rank": 0}, {"ridge": -1.0}, {"ridge": float("inf")}):
        with pytest.raises(InvalidInput, match=next(iter(options))):
            exhume.prior("gaussian", **options)
    with pytest.raises(InvalidInput, match="covariance"):
        exhume.prior("gaussian", covariance="diagonal")


# --- total variation -----------------------------------------------------------------


def loop_total_variation(images, kind, smoothing):
    total = 0.0
    for image in images.reshape(-1, *images.shape[-2:]).tolist():
        height, width = len(image), len(image[0])
        for i in range(height):
            for j in range(width):
                down = image[i + 1][j] - image[i][j] if i + 1 < height else 0.0
                right = image[i][j + 1] - image[i][j] if j + 1 < width else 0.0
                if kind == "isotropic":
                    total += (down**2 + right**2 + smoothing**2) ** 0.5 - smoothing
                else:
                    total += (down**2 + smoothing**2) ** 0.5 - smoothing
                    total += (right**2 + smoothing**2) ** 0.5 - smoothing
    return total


@pytest.mark.parametrize("kind", ["anisotropic", "isotropic"])
class TestTotalVariation:
    @pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
    def test_constant_images_cost_nothing(self, kind, level):
        flat = torch.full((2, 3, 5, 4), level, dtype=torch.float64)
        assert float(total_variation(flat, kind)) == 0.0
        density = TotalVariation(weight=3.0, kind=kind).fit(
            examples(COLOUR, 2, "unused"), None
        )
        assert float(density.energy(flat)) == 0.0

    def test_equals_a_loop_over_pixels(self, kind):
        x = torch.rand(2, 3, 4, 5, generator=generator(0), dtype=torch.float64)
        for smoothing in (1e-6, 0.1):
            expected = loop_total_variation(x, kind, smoothing)
            found = total_variation(x, kind, smoothing)
            assert float(found) == pytest.approx(expected, rel=1e-12)

    def test_scales_with_contrast_weight_and_not_with_brightness(self, kind):
        x = examples(COLOUR, 2, "x").inputs
        tiny = 1e-9
        one = float(total_variation(x, kind, tiny))
        assert float(total_variation(3 * x, kind, tiny)) == pytest.approx(3 * one)
        assert float(total_variation(x + 5, kind, tiny)) == pytest.approx(one)
        single, double = (
            TotalVariation(weight=w, kind=kind).fit(examples(COLOUR, 2, "u"), None)
            for w in (1.0, 2.0)
        )
        assert float(double.energy(x)) == 2 * float(single.energy(x))

    def test_curvature_gives_the_gradient_and_a_majoriser(self, kind):
        x = examples(GRAY, 1, "x").inputs.requires_grad_()
        (slope,) = torch.autograd.grad(total_variation(x, kind, 0.05), x)
        x = x.detach()
        product = lagged_diffusivity(x, x, kind, 0.05)
        torch.testing.assert_close(product, slope)
        for key in range(20):
            y = examples(GRAY, 1, "y", key).inputs
            quadratic = 0.5 * (y * lagged_diffusivity(x, y, kind, 0.05)).sum()
            at_x = 0.5 * (x * product).sum()
            above = total_variation(x, kind, 0.05) + quadratic - at_x
            assert float(total_variation(y, kind, 0.05)) <= float(above) + 1e-12

    def test_fitted_weight_is_the_maximum_of_the_likelihood(self, kind):
        batch = examples(GRAY, 25, "public")
        one = TotalVariation(kind=kind, smoothing=1e-9).fit(batch, None)
        wide = EventSpec.image(1, 6, 6, low=0.0, high=10.0)
        scaled = Batch(10 * batch.inputs, batch.targets, wide)
        other = TotalVariation(kind=kind, smoothing=1e-9).fit(scaled, None)
        assert other.weight == pytest.approx(one.weight / 10, rel=1e-6)
        mean = float(total_variation(batch.inputs, kind, 1e-9)) / 25
        assert one.weight == pytest.approx(homogeneous_weight(35, mean))


def test_homogeneous_weight_recovers_the_scale_of_a_random_walk():
    # Along one row the differences are independent: an exact Laplace model.
    steps = torch.distributions.Laplace(0.0, 0.2)
    uniform = torch.rand(4000, 9, generator=generator(0), dtype=torch.float64)
    jumps = steps.icdf(uniform)
    images = jumps.cumsum(1).reshape(4000, 1, 1, 9)
    images = torch.cat([torch.zeros(4000, 1, 1, 1), images], dim=-1)
    mean = float(total_variation(images, smoothing=1e-9)) / 4000
    found = homogeneous_weight(9, mean)
    assert found == pytest.approx(5.0, rel=4.5 / (4000 * 9) ** 0.5)


def test_total_variation_refuses_other_data_and_bad_options():
    with pytest.raises(InvalidInput, match="needs images"):
        TotalVariation().fit(examples(VECTOR, 3, "v"), None)
    density = TotalVariation(weight=1.0).fit(examples(GRAY, 3, "g"), None)
    with pytest.raises(InvalidInput, match="needs images"):
        density.energy(examples(VECTOR, 3, "v").inputs)
    flat = Batch(torch.ones(3, 1, 6, 6), torch.zeros(3).long(), GRAY)
    with pytest.raises(InvalidInput, match="every public image is constant"):
        TotalVariation().fit(flat, None)
    for options in ({"weight": 0.0}, {"smoothing": 0.0}, {"kind": "diagonal"}):
        with pytest.raises(InvalidInput, match=next(iter(options))):
            exhume.prior("total-variation", **options)
    with pytest.raises(InvalidInput, match="kind is 'diagonal'"):
        TotalVariation(kind="diagonal")


# --- BatchNorm statistics ------------------------------------------------------------


def test_batch_norm_energy_equals_a_loop_over_layers():
    task = task_for(GRAY)
    x = examples(GRAY, 3, "x").inputs
    density = BatchNormStatistics(weight=0.5).fit(examples(GRAY, 2, "u"), task)
    features = {}
    layer = dict(task.model.named_modules())["2"]
    handle = layer.register_forward_hook(lambda _, args, __: features.update(x=args[0]))
    task.model(x)
    handle.remove()
    mean = features["x"].mean((0, 2, 3)) - task.running_statistics["2"][0]
    var = features["x"].var((0, 2, 3), correction=0) - task.running_statistics["2"][1]
    expected = 0.5 * (mean.square().sum() + var.square().sum())
    torch.testing.assert_close(density.energy(x), expected)


def test_batch_norm_energy_vanishes_at_the_batch_that_made_the_statistics():
    task = task_for(COLOUR)
    x = examples(COLOUR, 4, "x").inputs
    statistics = {
        name: (mean.detach(), var.detach())
        for name, (mean, var) in task.batch_statistics(x).items()
    }
    density = BatchNormStatisticsDensity(task, statistics, 2.0)
    other = float(density.energy(x[:2]))
    assert float(density.energy(x)) < 1e-10 * other
    assert float(batch_norm_discrepancy(statistics, statistics)) == 0.0


def test_batch_norm_curvature_is_that_of_gauss_newton():
    task = task_for(GRAY)
    x, t = examples(GRAY, 2, "x").inputs, examples(GRAY, 2, "t").inputs
    statistics = {
        n: (m.detach(), v.detach()) for n, (m, v) in task.batch_statistics(x).items()
    }
    density = BatchNormStatisticsDensity(task, statistics, 0.7)
    # The residual is zero at x, so Gauss-Newton is the whole second derivative.
    _, exact = torch.autograd.functional.hvp(density.energy, x, t)
    torch.testing.assert_close(density.curvature(x, t), exact)


def test_batch_norm_statistics_need_batch_norm():
    with pytest.raises(InvalidInput, match="no BatchNorm layer with running"):
        BatchNormStatistics().fit(examples(GRAY, 2, "u"), task_for(GRAY, norm=False))
    with pytest.raises(InvalidInput, match="weight"):
        exhume.prior("batch-norm-statistics", weight=-1.0)
