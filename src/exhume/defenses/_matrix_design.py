"""Noise covariances that are optimal for a utility cost: the matrices, not the data.

Minimising tr(S⁻¹ M) subject to tr(S H) = c gives S ∝ H^{-1/2} (H^{1/2} M H^{1/2})^{1/2}
H^{-1/2}, the matrix geometric mean of H⁻¹ and M. For M = E[J Jᵀ] that maximises the
trace bound. The Bayesian Cramér–Rao bound tr (E Jᵀ S⁻¹ J + J_P)⁻¹ itself is concave in
S; its maximiser is the same mean of H⁻¹ and M = E[J A² Jᵀ] with A = (E Jᵀ S⁻¹ J +
J_P)⁻¹, a fixed point that a few iterations reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.keys import generator
from exhume.problem.covariance import Covariance, KroneckerFactors, LowRank
from exhume.problem.tree import size, unflatten

__all__ = [
    "Metric",
    "diagonal_optimum",
    "geometric_mean",
    "kronecker_optimum",
    "low_rank_optimum",
    "matched",
    "posterior_covariance",
    "utility_cost",
]

# Shares of the mean below which sensitivities and eigenvalues are raised: noise that
# vanishes in some direction would leave it open to data that were not public.
_LEAST_SENSITIVITY = 1e-3
_LEAST_EIGENVALUE = 1e-4
# Singular values below this share of the largest are rounding.
_NEGLIGIBLE = 1e-6
_TOGETHER = 64  # columns of H at once


@dataclass(frozen=True, eq=False)
class Metric:
    """The utility metric H = C Cᵀ + r I.

    Attributes:
        columns: C, shape [P, n]; n may be 0.
        ridge: r > 0.
    """

    columns: Tensor
    ridge: float

    def diagonal(self) -> Tensor:
        """Return H_ii, shape [P]."""
        return self.columns.square().sum(dim=1) + self.ridge

    def trace(self) -> float:
        """Return tr H."""
        return float(self.diagonal().sum())


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
    root, inverse = _power(metric, 0.5), _power(metric, -0.5)
    return inverse @ _power(root @ sensitivity @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
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
    r"A = \Big( \tfrac1N \textstyle\sum_n T_n^\top S^{-1} T_n + \Lambda^{-1} "
    r"\Big)^{-1},\quad T_n = J(x_n) B",
    reference="van Trees 1968, in the principal components B of the prior",
)
def posterior_covariance(
    tangents: Tensor,
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
    information = torch.diag(1 / prior)

    def whitened(column: Tensor) -> Tensor:
        tree = covariance.whiten(unflatten(column, shapes))
        return torch.cat([t.reshape(-1) for t in tree.values()])

    for tangent in tangents:
        white = torch.func.vmap(whitened)(tangent.T)
        information += (white @ white.T).to(information) / len(tangents)
    return torch.linalg.inv(information)


def low_rank_optimum(
    weighted: Tensor,
    metric: Metric,
    shapes: Mapping[str, Tensor],
    rank: int,
    key: int,
) -> LowRank:
    """Return the optimum as a diagonal plus a low-rank correction, up to scale.

    In coordinates scaled by the diagonal optimum both M and H are resolved exactly in
    the span of their leading directions, and taken for multiples of the identity
    outside of it. Rank 0 is the diagonal optimum itself.

    Args:
        weighted: T_n A with M = (1/N) Σ T_n A (T_n A)ᵀ, shape [N, P, r].
        metric: H.
        shapes: tensors in the layout of one tangent.
        rank: k ≥ 0, dimension of the span.
        key: randomness of the range finder (Halko et al. 2011).
    """
    count, parameters, _ = weighted.shape
    sensitivity = weighted.square().sum(dim=(0, 2)) / count
    if float(sensitivity.sum()) == 0:
        # Nothing public moves the update: all coordinates count the same.
        sensitivity, rank = torch.ones_like(sensitivity), 0
    scale = diagonal_optimum(sensitivity, metric.diagonal()).sqrt()
    seen = weighted / scale.unsqueeze(-1) / count**0.5
    cost = metric.columns * scale.unsqueeze(-1)
    basis = _leading_span(seen, cost, rank, key)
    rank = basis.shape[1]
    inside = (basis.T @ seen).transpose(0, 1).flatten(1)
    projected = basis.T @ cost
    m = inside @ inside.T
    h = projected @ projected.T + metric.ridge * (basis.T * scale.square()) @ basis
    total_m = float((sensitivity / scale.square()).sum())
    total_h = float(cost.square().sum() + metric.ridge * scale.square().sum())
    rest = max(parameters - rank, 1)
    floor = _LEAST_EIGENVALUE * total_m / parameters
    rest_m = max(total_m - float(m.trace()), 0.0) / rest + floor
    rest_h = max(total_h - float(h.trace()), _LEAST_EIGENVALUE * total_h) / rest
    level = (rest_m / rest_h) ** 0.5
    core = geometric_mean(h, m + floor * torch.eye(rank).to(m))
    values, turn = torch.linalg.eigh(core)
    values = values.clamp_min(_LEAST_EIGENVALUE * level)
    root = unflatten(level**0.5 * scale, shapes)
    return LowRank(root, basis @ turn, values / level - 1)


def _leading_span(seen: Tensor, cost: Tensor, rank: int, key: int) -> Tensor:
    """Return an orthonormal basis of the leading directions of M and H together."""
    count, parameters, directions = seen.shape
    rank = min(rank, parameters)
    if rank == 0:
        return seen.new_zeros(parameters, 0)
    probes = torch.randn(
        (count * directions, 2 * rank),
        generator=generator(key, "range-finder"),
        dtype=torch.float64,
    ).to(seen)
    sketch = (seen @ probes.reshape(count, directions, 2 * rank)).sum(dim=0)
    parts = [part / part.norm() for part in (sketch, cost) if part.numel()]
    return _leading_left(torch.cat(parts, dim=1), rank)


def _leading_left(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors of a tall matrix, rank at most.

    By the eigenvectors of AᵀA, which is many times faster than a decomposition of A and
    as good for singular values well above 1e-8 of the largest; smaller ones are left.
    """
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    kept = min(rank, int((values > _NEGLIGIBLE**2 * values[-1]).sum()))
    leading = matrix @ vectors[:, len(values) - kept :].flip(1)
    return torch.linalg.qr(leading).Q


def kronecker_optimum(
    weighted: Tensor, metric: Metric, shapes: Mapping[str, Tensor]
) -> KroneckerFactors:
    """Return the optimum with one Kronecker product per tensor, up to scale.

    With M_l ≈ A ⊗ B and H_l ≈ A′ ⊗ B′ the optimum factorises into the geometric means
    of the factors, so only small matrices are decomposed.

    Args:
        weighted: T_n A, shape [N, P, r].
        metric: H.
        shapes: tensors in the layout of one tangent.
    """
    count = len(weighted)
    columns = weighted.permute(1, 0, 2).flatten(1) / count**0.5
    left, right = {}, {}
    start = 0
    for name, like in shapes.items():
        rows = slice(start, start + like.numel())
        start += like.numel()
        shape = (len(like) if like.dim() else 1, -1)
        a, b = _factors(columns[rows], shape, 0.0)
        a_cost, b_cost = _factors(metric.columns[rows], shape, metric.ridge)
        left[name] = _power(_floored(geometric_mean(a_cost, a)), 0.5)
        right[name] = _power(_floored(geometric_mean(b_cost, b)), 0.5)
    return KroneckerFactors(
        left, right, {name: tuple(like.shape) for name, like in shapes.items()}
    )


def _factors(
    columns: Tensor, shape: tuple[int, int], ridge: float
) -> tuple[Tensor, Tensor]:
    """Fit Σ c cᵀ + ridge ≈ A ⊗ B by its partial traces."""
    matrices = columns.T.reshape(columns.shape[1], *shape) if columns.numel() else None
    rows, width = shape[0], columns.shape[0] // shape[0]
    a = ridge * width * torch.eye(rows, dtype=columns.dtype)
    b = ridge * rows * torch.eye(width, dtype=columns.dtype)
    if matrices is not None:
        a = a + torch.einsum("nij,nkj->ik", matrices, matrices)
        b = b + torch.einsum("nij,nik->jk", matrices, matrices)
    total = float(a.trace())
    tiny = torch.finfo(columns.dtype).tiny ** 0.5
    return _floored(a), _floored(b) / max(total, tiny)


def _floored(matrix: Tensor) -> Tensor:
    floor = _LEAST_EIGENVALUE * float(matrix.diagonal().mean())
    tiny = torch.finfo(matrix.dtype).tiny ** 0.5
    return matrix + max(floor, tiny) * torch.eye(len(matrix)).to(matrix)


@formula(
    r"\mathrm{tr}(S H)", reference="Chen, Gursoy and Lei 2024 (−U2 for H = E g gᵀ)"
)
def utility_cost(
    covariance: Covariance, metric: Metric, shapes: Mapping[str, Tensor]
) -> float:
    """Return the utility that noise with covariance S costs.

    Args:
        covariance: S.
        metric: H.
        shapes: tensors in the layout of a column of H.
    """
    own = covariance.diagonal()
    cost = metric.ridge * sum(float(v.sum()) for v in own.values())

    def squared(column: Tensor) -> Tensor:
        coloured = covariance.transposed_colour(unflatten(column, shapes))
        return torch.stack([t.square().sum() for t in coloured.values()]).sum()

    for part in metric.columns.T.split(_TOGETHER):
        cost += float(torch.func.vmap(squared)(part).sum())
    return cost


def matched(
    covariance: Covariance, metric: Metric, shapes: Mapping[str, Tensor], cost: float
) -> Covariance:
    """Scale a covariance to a given utility cost.

    Args:
        covariance: S, up to scale.
        metric: H.
        shapes: tensors in the layout of a column of H.
        cost: tr(S H) > 0 of the result.
    """
    assert size(shapes) == len(metric.columns)
    return covariance.scaled(cost / utility_cost(covariance, metric, shapes))
