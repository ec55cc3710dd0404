"""Covariances as a spectrum: some directions, and one variance for all the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = [
    "Spectrum",
    "gaussian_log_likelihood",
    "leading_directions",
    "precision_product",
    "principal_directions",
    "probabilistic_principal_components",
    "shrunk_covariance",
]

#: eigenvectors [d, k], their variances [k], variance of every other direction
Spectrum = tuple[Tensor, Tensor, float]


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
