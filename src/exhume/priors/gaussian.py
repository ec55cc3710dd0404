"""Gaussian density fitted to public examples: mean and a regularised covariance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator
from exhume.priors.class_means import (
    ClassMeans,
    GivenLabels,
    held_out_p_values,
)
from exhume.problem.batch import Batch
from exhume.problem.prior import Density, Prior
from exhume.problem.task import Task

__all__ = [
    "Gaussian",
    "GaussianDensity",
    "Spectrum",
    "gaussian_log_likelihood",
    "leading_directions",
    "mahalanobis_per_dimension",
    "precision_product",
    "principal_directions",
    "probabilistic_principal_components",
    "shrunk_covariance",
]

Covariance = Literal["shrinkage", "ledoit-wolf", "empirical", "low-rank"]
_FEWEST = 5  # examples below which there is nothing to hold out
# Candidates for the share of the identity, on a logarithmic scale.
_SHRINKAGES = tuple(10 ** (-3 + 3 * i / 24) for i in range(25))
_FOLDS = 5
_HELD_OUT = 50  # held-out examples that settle the check of the fit

#: eigenvectors [d, k], their variances [k], variance of every other direction
Spectrum = tuple[Tensor, Tensor, float]


# --- covariances as a spectrum -------------------------------------------------------


@formula(
    r"P r = U \Lambda^{-1} U^\top r + \tfrac{1}{v} (r - U U^\top r)",
    reference="Woodbury identity for Σ = U Λ Uᵀ + v (I − U Uᵀ)",
)
def precision_product(
    residuals: Tensor, basis: Tensor, variances: Tensor, floor: float
) -> Tensor:
    """Multiply by the precision P = Σ⁻¹ without forming a d × d matrix.

    Args:
        residuals: r, shape [B, d].
        basis: U with orthonormal columns, shape [d, k].
        variances: eigenvalues Λ of Σ on the basis, shape [k], positive.
        floor: v > 0, the variance in every direction outside the basis.

    Returns:
        P r, shape [B, d].
    """
    inside = residuals @ basis
    outside = residuals - inside @ basis.T
    return (inside / variances) @ basis.T + outside / floor


@formula(
    r"\Sigma = (1 - s) S + s \, \tfrac{\mathrm{tr}\, S}{d} I",
    reference="Ledoit and Wolf 2004",
)
def shrunk_covariance(
    basis: Tensor, variances: Tensor, mean_variance: float, shrinkage: float
) -> Spectrum:
    """Shrink the empirical covariance S towards a multiple of the identity.

    Args:
        basis: eigenvectors of S with positive eigenvalue, shape [d, k].
        variances: their eigenvalues, shape [k].
        mean_variance: tr S / d.
        shrinkage: s in [0, 1].

    Returns:
        The spectrum of Σ.
    """
    floor = shrinkage * mean_variance
    return basis, (1 - shrinkage) * variances + floor, floor


@formula(
    r"\Sigma = U_k \Lambda_k U_k^\top + v (I - U_k U_k^\top),\quad "
    r"v = \frac{\mathrm{tr}\, S - \mathrm{tr}\, \Lambda_k}{d - k}",
    reference="Tipping and Bishop 1999, Eqs. 7-8",
)
def probabilistic_principal_components(
    basis: Tensor, variances: Tensor, mean_variance: float
) -> Spectrum:
    """Keep k principal directions and spread the remaining variance evenly.

    The maximum-likelihood covariance of the form W Wᵀ + v I.

    Args:
        basis: the k leading eigenvectors U_k of the empirical covariance, [d, k].
        variances: their eigenvalues Λ_k, shape [k].
        mean_variance: tr S / d.

    Returns:
        The spectrum of Σ.
    """
    d, k = basis.shape
    rest = d * mean_variance - float(variances.sum())
    return basis, variances, max(rest, 0.0) / max(d - k, 1)


@formula(
    r"\ell = -\tfrac{1}{2n} \sum_i \big( r_i^\top \Sigma^{-1} r_i + \log\det\Sigma "
    r"+ d \log 2\pi \big)",
    reference="definition",
)
def gaussian_log_likelihood(residuals: Tensor, spectrum: Spectrum) -> float:
    """Return the mean log-likelihood of residuals under N(0, Σ), in nats.

    Args:
        residuals: r = x − μ, shape [n, d].
        spectrum: of Σ, positive in every direction.
    """
    basis, variances, floor = spectrum
    d, k = basis.shape
    weighed = precision_product(residuals, basis, variances, floor)
    distance = float((residuals * weighed).sum()) / len(residuals)
    log_det = float(variances.log().sum()) + (d - k) * math.log(floor)
    return -0.5 * (distance + log_det + d * math.log(2 * math.pi))


def principal_directions(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvectors [d, k] and positive eigenvalues [k] of CᵀC / n."""
    count, dimension = centred.shape
    if count > dimension:
        values, vectors = torch.linalg.eigh(centred.T @ centred / count)
    else:
        _, singular, right = torch.linalg.svd(centred, full_matrices=False)
        values, vectors = singular.square() / count, right.T
    kept = values > values.max() * dimension * torch.finfo(values.dtype).eps
    if not bool(kept.any()):
        msg = "all public examples are equal; a Gaussian prior needs some variety"
        raise InvalidInput(msg)
    return vectors[:, kept], values[kept]


def leading_directions(centred: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors and eigenvalues by a randomised SVD."""
    from sklearn.utils.extmath import randomized_svd

    largest = min(rank, len(centred) - 1, centred.shape[1])
    _, singular, right = randomized_svd(centred.cpu().numpy(), largest, random_state=0)
    values = torch.as_tensor(singular, device=centred.device).square() / len(centred)
    vectors = torch.as_tensor(right.copy(), device=centred.device).T
    kept = values > 0
    if not bool(kept.any()):
        msg = "all public examples are equal; a Gaussian prior needs some variety"
        raise InvalidInput(msg)
    return vectors[:, kept], values[kept]


# --- the density and its fit ---------------------------------------------------------


@formula(
    r"\frac{1}{N d} \sum_{i=1}^{N} r_i^\top P r_i",
    reference="Mahalanobis 1936; expectation 1 under N(μ, P⁻¹)",
)
def mahalanobis_per_dimension(residuals: Tensor, weighted: Tensor) -> float:
    """Measure whether examples look like draws of a Gaussian: 1 if they do.

    Above 1 the density is too narrow for the examples, below 1 too wide. For true draws
    the standard deviation is √(2 / (N d)).

    Args:
        residuals: rᵢ = xᵢ − μ of examples that were not used in the fit, shape [N, d].
        weighted: P rᵢ, shape [N, d].
    """
    return float((residuals * weighted).sum() / residuals.numel())


@dataclass(frozen=True, eq=False)
class GaussianDensity(Density):
    """N(μ, Σ) of one example, Σ = U Λ Uᵀ + v (I − U Uᵀ); float64 inside.

    A full covariance has k = d; with k < d nothing of size d × d is ever formed, except
    by :meth:`information`. Results have the type and device of the inputs.

    Attributes:
        location: μ, shape [*event], float64.
        basis: U, orthonormal columns, shape [d, k], float64.
        variances: Λ, shape [k], float64.
        floor: v, variance in every other direction.
        dtype: precision of :meth:`mean` and :meth:`sample`.
        fit_check: :func:`mahalanobis_per_dimension` of held-out public examples (≈ 1 if
            they look like draws), or None if the density was not fitted.
        classes: means of classes, or None if it has none.
        within: density of x − μ_y, of one covariance for all classes; with ``classes``.
        p_values: of held-out public examples, see ``held_out_p_values``; None
            if they were not tested.
    """

    name: ClassVar[str] = "gaussian"
    supports: ClassVar[frozenset[str]] = frozenset(
        {"mean", "sample", "information", "curvature"}
    )
    location: Tensor
    basis: Tensor
    variances: Tensor
    floor: float
    dtype: torch.dtype = torch.float64
    fit_check: float | None = None
    classes: ClassMeans | None = None
    within: GaussianDensity | None = None
    p_values: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if float(self.variances.min()) <= 0 or self.floor <= 0:
            msg = (
                "the covariance is singular: some direction has no variance in the "
                "public examples; use covariance='shrinkage' or a larger ridge"
            )
            raise InvalidInput(msg)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> GaussianDensity:
        """Make the density from a mean [*event] and a full covariance [d, d]."""
        variances, basis = torch.linalg.eigh(covariance.double())
        floor = float(variances[0])
        return cls(mean.double(), basis, variances, floor, mean.dtype)

    def given(self, targets: Tensor) -> GivenLabels | None:
        """Return the density p(x | y) of a batch, or None if a class has no mean.

        Args:
            targets: y, shape [B].
        """
        if self.classes is None or self.within is None:
            return None
        rows = self.classes.rows(targets)
        if rows is None:
            return None
        means = self.classes.means[rows]
        return GivenLabels(means, self.within, self.fit_check, self.p_values)

    def energy(self, inputs: Tensor) -> Tensor:
        """Return ½ Σᵢ (xᵢ − μ)ᵀ P (xᵢ − μ), a scalar of the inputs' type."""
        residuals = self._residuals(inputs)
        value = 0.5 * (residuals * self._weigh(residuals)).sum()
        return value.to(inputs.dtype)

    def curvature(self, inputs: Tensor, direction: Tensor) -> Tensor:
        """Return P t, shape [B, *event]; the energy is quadratic, so x is not used."""
        del inputs
        flat = direction.reshape(len(direction), -1).double()
        return self._weigh(flat).reshape(direction.shape).to(direction.dtype)

    def mean(self) -> Tensor:
        """Return μ, shape [*event]."""
        return self.location.to(self.dtype)

    def sample(self, count: int, key: int) -> Tensor:
        """Draw examples, shape [count, *event]; they may leave the data's range."""
        shape = (count, self.location.numel())
        white = torch.randn(
            shape, generator=generator(key, "gaussian", "sample"), dtype=torch.float64
        ).to(self.location.device)
        root = self.floor**0.5
        inside = (white @ self.basis) * (self.variances.sqrt() - root)
        flat = root * white + inside @ self.basis.T
        return (self.location + flat.reshape(count, *self.location.shape)).to(
            self.dtype
        )

    def information(self) -> Tensor:
        """Return J_P = P, the exact information of a Gaussian, [d, d], float64."""
        scaled = self.basis * (1 / self.variances - 1 / self.floor)
        information = scaled @ self.basis.T
        information.diagonal().add_(1 / self.floor)
        return (information + information.T) / 2

    def check(self, held_out: Batch) -> float:
        """Return :func:`mahalanobis_per_dimension` of examples outside the fit."""
        residuals = self._residuals(held_out.inputs)
        return mahalanobis_per_dimension(residuals, self._weigh(residuals))

    def _residuals(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:] != self.location.shape:
            msg = (
                f"inputs have shape {list(inputs.shape)}; this prior was fitted to "
                f"examples of shape {list(self.location.shape)}"
            )
            raise InvalidInput(msg)
        location = self.location.to(inputs.device)
        return (inputs.double() - location).reshape(len(inputs), -1)

    def _weigh(self, residuals: Tensor) -> Tensor:
        basis = self.basis.to(residuals.device)
        variances = self.variances.to(residuals.device)
        return precision_product(residuals, basis, variances, self.floor)


_LEDOIT_WOLF = """
@article{ledoit2004well,
  title = {A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices},
  author = {Ledoit, Olivier and Wolf, Michael},
  journal = {Journal of Multivariate Analysis},
  volume = {88}, number = {2}, pages = {365--411}, year = {2004}
}
"""
_LOW_RANK = """
@article{tipping1999probabilistic,
  title = {Probabilistic Principal Component Analysis},
  author = {Tipping, Michael E. and Bishop, Christopher M.},
  journal = {Journal of the Royal Statistical Society: Series B},
  volume = {61}, number = {3}, pages = {611--622}, year = {1999}
}
"""


@dataclass(frozen=True, kw_only=True)
class Gaussian(Prior):
    """Fit a Gaussian to public examples.

    Attributes:
        covariance: ``shrinkage`` (full, shrunk as far as makes held-out examples most
            likely), ``ledoit-wolf`` (full, shrunk for the least squared error of the
            covariance, which leaves its precision too large), ``empirical`` (full), or
            ``low-rank`` (probabilistic principal components).
        rank: number of principal directions; read by ``low-rank`` only.
        ridge: variance added in every direction, as a fraction of the mean variance of
            a coordinate.

    Raises:
        InvalidInput: an option is out of its range.
    """

    variant_bibtex: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "covariance": {"ledoit-wolf": _LEDOIT_WOLF, "low-rank": _LOW_RANK}
    }
    covariance: Literal["shrinkage", "ledoit-wolf", "empirical", "low-rank"] = (
        "shrinkage"
    )
    rank: int = 64
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.rank < 1:
            msg = f"rank is {self.rank}; a low-rank covariance needs at least 1"
            raise InvalidInput(msg)
        if not 0 <= self.ridge < float("inf"):
            msg = f"ridge is {self.ridge}; expected a finite number, zero or more"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return each way to estimate a covariance from few examples."""
        return (
            cls(),
            cls(covariance="empirical"),
            cls(covariance="low-rank", rank=3),
        )

    def fit(self, public: Batch, task: Task) -> GaussianDensity:
        """Fit to all public examples, and check the fit on held-out ones.

        Args:
            public: at least five examples.
            task: not used.

        Raises:
            InvalidInput: fewer than five examples, or all of them are equal.
        """
        del task
        if len(public) < _FEWEST:
            msg = (
                f"a Gaussian prior was given {len(public)} public example(s); it needs "
                f"{_FEWEST} to fit and check it, better some hundreds"
            )
            raise InvalidInput(msg)
        shrinkage = self._likeliest(public) if self.covariance == "shrinkage" else None
        density = self._fit(public.inputs, shrinkage)
        means, within = self._within_classes(public, shrinkage)
        several = len(means.labels) > 1
        return replace(
            density,
            fit_check=self._cross_validate(public, shrinkage),
            classes=means if several else None,
            within=within if several else None,
            p_values=self._tested(public, shrinkage),
        )

    def _fit(self, inputs: Tensor, shrinkage: float | None) -> GaussianDensity:
        flat = inputs.detach().reshape(len(inputs), -1).double()
        location = flat.mean(dim=0)
        centred = flat - location
        mean_variance = float(centred.square().mean())
        basis, variances, floor = self._spectrum(centred, mean_variance, shrinkage)
        added = self.ridge * mean_variance
        return GaussianDensity(
            location.reshape(inputs.shape[1:]),
            basis,
            variances + added,
            floor + added,
            inputs.dtype,
        )

    def _within_classes(
        self, public: Batch, shrinkage: float | None
    ) -> tuple[ClassMeans, GaussianDensity]:
        """Fit the means of classes, and one covariance within all of them."""
        means = ClassMeans.of(public)
        rows = means.rows(public.targets)
        assert rows is not None  # they are its own
        lost = len(public) - len(means.labels)
        residuals = means.residuals(public, rows) * (len(public) / lost) ** 0.5
        within = self._fit(residuals.to(public.inputs.dtype), shrinkage)
        return means, replace(within, location=torch.zeros_like(within.location))

    def _tested(
        self, public: Batch, shrinkage: float | None
    ) -> tuple[float, float] | None:
        """Test the fit to four fifths of the examples on the others."""
        local = generator(0, "gaussian", "test")
        order = torch.randperm(len(public), generator=local)
        fifth = len(public) // _FOLDS
        held_out, rest = public.select(order[:fifth]), public.select(order[fifth:])
        means, within = self._within_classes(rest, shrinkage)
        freedom = len(rest) - len(means.labels)
        return held_out_p_values(means, within._weigh, held_out, freedom)

    def _spectrum(
        self, centred: Tensor, mean_variance: float, shrinkage: float | None
    ) -> Spectrum:
        if self.covariance == "low-rank":
            basis, variances = leading_directions(centred, self.rank)
            return probabilistic_principal_components(basis, variances, mean_variance)
        basis, variances = principal_directions(centred)
        if self.covariance == "empirical":
            # Every direction is in the basis if there are as many variances.
            whole = len(variances) == centred.shape[1]
            return basis, variances, float(variances.min()) if whole else 0.0
        if shrinkage is None:
            from sklearn.covariance import ledoit_wolf_shrinkage

            data = centred.cpu().numpy()
            shrinkage = float(ledoit_wolf_shrinkage(data, assume_centered=True))
        return shrunk_covariance(basis, variances, mean_variance, shrinkage)

    def _likeliest(self, public: Batch) -> float:
        """Return the shrinkage under which held-out examples are most likely."""
        likelihood = dict.fromkeys(_SHRINKAGES, 0.0)
        for rest, held_out in _folds(public):
            flat = rest.reshape(len(rest), -1).double()
            location = flat.mean(dim=0)
            basis, variances = principal_directions(flat - location)
            mean_variance = float((flat - location).square().mean())
            residuals = held_out.inputs.reshape(len(held_out), -1).double() - location
            for s in _SHRINKAGES:
                spectrum = shrunk_covariance(basis, variances, mean_variance, s)
                likelihood[s] += gaussian_log_likelihood(residuals, spectrum)
        return max(likelihood, key=likelihood.__getitem__)

    def _cross_validate(self, public: Batch, shrinkage: float | None) -> float:
        """Average the check over folds."""
        total, seen = 0.0, 0
        for rest, held_out in _folds(public):
            density = self._fit(rest, shrinkage)
            total += len(held_out) * density.check(held_out)
            seen += len(held_out)
        return total / seen


def _folds(public: Batch) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (inputs to fit, examples held out), until enough were held out."""
    local = generator(0, "gaussian", "cross-validation")
    order = torch.randperm(len(public), generator=local)
    seen = 0
    for fold in range(_FOLDS):
        rest = torch.cat([order[k::_FOLDS] for k in range(_FOLDS) if k != fold])
        held_out = public.select(order[fold::_FOLDS])
        yield public.inputs[rest], held_out
        seen += len(held_out)
        if seen >= _HELD_OUT:
            return
