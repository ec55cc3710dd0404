"""Noise covariances that are optimal for a utility cost: the matrices, not the data.

Minimising tr(S⁻¹ M) subject to tr(S H) = c gives S ∝ H^{-1/2} (H^{1/2} M H^{1/2})^{1/2}
H^{-1/2}, the matrix geometric mean of H⁻¹ and M. For M = E[J Jᵀ] that maximises the
trace bound. The Bayesian Cramér–Rao bound tr (E Jᵀ S⁻¹ J + J_P)⁻¹ itself is concave in
S; its maximiser is the same mean of H⁻¹ and M = E[J A² Jᵀ] with A = (E Jᵀ S⁻¹ J +
J_P)⁻¹, a fixed point that a few iterations reach.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exhume.defenses._blocks import columns_at_once, inner
from exhume.defenses._principal_directions import Tangents
from exhume.formula import formula
from exhume.problem.covariance import Covariance
from exhume.problem.tree import unflatten

__all__ = [
    "LEAST_EIGENVALUE",
    "average_information",
    "diagonal_optimum",
    "geometric_mean",
    "posterior_covariance",
    "power",
]

# Shares of the mean below which sensitivities and eigenvalues are raised: noise that
# vanishes in some direction would leave it open to data that were not public.
_LEAST_SENSITIVITY = 1e-3
LEAST_EIGENVALUE = 1e-4


@formula(
    r"S = H^{-1/2} (H^{1/2} M H^{1/2})^{1/2} H^{-1/2}",
    reference="ours; geometric mean of H⁻¹ and M (Bhatia 2007, chapter 4)",
)
def geometric_mean(metric: Tensor, sensitivity: Tensor) -> Tensor:
    """Return the minimiser of tr(S⁻¹ M) subject to tr(S H) = const, up to scale.

    It is the one positive definite solution of S H S = M.

    Args:
        metric: H, symmetric positive definite, shape [k, k].
        sensitivity: M, likewise.
    """
    root, inverse = power(metric, 0.5), power(metric, -0.5)
    return inverse @ power(root @ sensitivity @ root, 0.5) @ inverse


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric positive definite matrix.

    Args:
        matrix: shape [k, k]; k may be 0.
        exponent: any real number.
    """
    if matrix.numel() == 0:
        return matrix
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    tiny = torch.finfo(values.dtype).eps * float(values.abs().max())
    return (vectors * values.clamp_min(tiny) ** exponent) @ vectors.T


@formula(
    r"v_i \propto a_i / h_i",
    reference="Chen, Gursoy and Lei 2024 (Optimal Gradient Noise); v is a variance",
)
def diagonal_optimum(sensitivity: Tensor, metric: Tensor) -> Tensor:
    """Return the minimiser of Σ a_i²/v_i subject to Σ v_i h_i² = const, up to scale.

    Args:
        sensitivity: a_i² = M_ii ≥ 0, shape [P].
        metric: h_i² = H_ii > 0, shape [P].
    """
    a = sensitivity.sqrt()
    return a.clamp_min(_LEAST_SENSITIVITY * float(a.mean())) / metric.sqrt()


@formula(
    r"\tfrac1N \textstyle\sum_n T_n^\top S^{-1} T_n",
    reference="Fisher information of a Gaussian mean, averaged; Kay 1993, section 3.9",
)
def average_information(
    tangents: Tensor | Tangents, covariance: Covariance, shapes: Mapping[str, Tensor]
) -> Tensor:
    """Return what a release with noise S tells about every direction, on average.

    Args:
        tangents: T_n, shape [N, P, r].
        covariance: S.
        shapes: tensors in the layout of one tangent.

    Returns:
        shape [r, r], float64.
    """

    def whitened(column: Tensor) -> Tensor:
        tree = covariance.whiten(unflatten(column.double(), shapes))
        return torch.cat([t.reshape(-1) for t in tree.values()]).to(column)

    count, parameters, directions = tangents.shape
    together = columns_at_once(parameters)
    information = torch.zeros(directions, directions, dtype=torch.float64)
    for tangent in tangents:
        parts = tangent.T.split(together)
        white = torch.cat([torch.func.vmap(whitened)(part) for part in parts]).T
        information += inner(white, white).to(information) / count
    return information


@formula(
    r"A = \Big( \tfrac1N \textstyle\sum_n T_n^\top S^{-1} T_n + \Lambda^{-1} "
    r"\Big)^{-1},\quad T_n = J(x_n) B",
    reference="van Trees 1968, in the principal components B of the prior",
)
def posterior_covariance(
    tangents: Tensor | Tangents,
    covariance: Covariance,
    shapes: Mapping[str, Tensor],
    prior: Tensor,
) -> Tensor:
    """Return the matrix whose trace is the Bayesian Cramér–Rao bound of a design.

    Args:
        tangents: T_n, shape [N, P, r].
        covariance: S.
        shapes: tensors in the layout of one tangent.
        prior: Λ, variances of the r directions, shape [r].
    """
    information = average_information(tangents, covariance, shapes).to(prior)
    return torch.linalg.inv(information + torch.diag(1 / prior))
