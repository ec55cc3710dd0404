"""The optimal covariance as a diagonal plus a low-rank correction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exhume.defenses._blocks import inner, row_blocks
from exhume.defenses._matrix_design import (
    LEAST_EIGENVALUE,
    diagonal_optimum,
    geometric_mean,
)
from exhume.defenses._principal_directions import Tangents
from exhume.defenses._utility_cost import Metric
from exhume.keys import generator
from exhume.problem.covariance import LowRank
from exhume.problem.tree import unflatten

__all__ = ["low_rank_optimum"]

# Singular values below this share of the largest are rounding.
_NEGLIGIBLE = 1e-6


def low_rank_optimum(
    weighted: Tensor | Tangents,
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
        weighted: T_n A with M = (1/N) Σ T_n A (T_n A)ᵀ, shape [N, P, r]; gone through
            twice.
        metric: H.
        shapes: tensors in the layout of one tangent.
        rank: k ≥ 0, dimension of the span.
        key: randomness of the range finder (Halko et al. 2011).
    """
    count, parameters, _ = weighted.shape
    rank = min(rank, parameters)
    sensitivity, sketch = _sketched(weighted, 2 * rank, key)
    if float(sensitivity.sum()) == 0:
        # Nothing public moves the update: all coordinates count the same.
        sensitivity, rank = torch.ones_like(sensitivity), 0
    cost = metric.diagonal()
    scale = diagonal_optimum(sensitivity, cost).sqrt()
    basis = _leading_span(sketch.div_(scale.unsqueeze(-1)), metric, scale, rank)
    del sketch
    rank = basis.shape[1]
    m = basis.new_zeros(rank, rank)
    for piece in weighted:
        inside = inner(basis, piece, 1 / scale)
        m += inside @ inside.T / count
    projected = inner(basis, metric.columns, scale)
    h = projected @ projected.T
    h += metric.ridge * inner(basis, basis, scale.square())
    total_m = float((sensitivity / scale.square()).sum())
    total_h = float((cost * scale.square()).sum())
    rest = max(parameters - rank, 1)
    floor = LEAST_EIGENVALUE * total_m / parameters
    rest_m = max(total_m - float(m.trace()), 0.0) / rest + floor
    rest_h = max(total_h - float(h.trace()), LEAST_EIGENVALUE * total_h) / rest
    level = (rest_m / rest_h) ** 0.5
    core = geometric_mean(h, m + floor * torch.eye(rank).to(m))
    values, turn = torch.linalg.eigh(core)
    values = values.clamp_min(LEAST_EIGENVALUE * level)
    root = unflatten(level**0.5 * scale, shapes)
    return LowRank(root, basis @ turn, values / level - 1)


def _sketched(
    weighted: Tensor | Tangents, size: int, key: int
) -> tuple[Tensor, Tensor]:
    """Return M_ii, and the sum of T_n A times random matrices with ``size`` columns."""
    count, parameters, directions = weighted.shape
    source = generator(key, "range-finder")
    probes = torch.randn(
        (count, directions, size), generator=source, dtype=torch.float64
    )
    diagonal = torch.zeros(parameters, dtype=torch.float64)
    sketch = torch.zeros(parameters, size, dtype=torch.float64)
    for piece, probe in zip(weighted, probes, strict=True):
        diagonal, sketch = diagonal.to(piece.device), sketch.to(piece.device)
        for rows in row_blocks(parameters):
            block = piece[rows].double()
            diagonal[rows] += block.square().sum(dim=1) / count
            sketch[rows] += block @ probe.to(block)
    return diagonal, sketch


def _leading_span(sketch: Tensor, metric: Metric, scale: Tensor, rank: int) -> Tensor:
    """Return an orthonormal basis of the leading directions of M and H together.

    They are the left singular vectors of A = [sketch, diag(scale) C], each part of norm
    1, by the eigenvectors of AᵀA: many times faster than a decomposition of A, without
    storing A, and as good for singular values well above 1e-8 of the largest; smaller
    ones are left.
    """
    if rank == 0:
        return sketch.new_zeros(len(sketch), 0)
    columns = metric.columns
    own, theirs = inner(sketch, sketch), inner(columns, columns, scale.square())
    both = inner(sketch, columns, scale)
    gram = torch.cat([torch.cat([own, both], 1), torch.cat([both.T, theirs], 1)])
    norms = [part.trace().sqrt().expand(len(part)) for part in (own, theirs)]
    unit = 1 / torch.cat(norms)
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * gram * unit)
    kept = min(rank, int((values > _NEGLIGIBLE**2 * values[-1]).sum()))
    weights = unit.unsqueeze(-1) * vectors[:, len(values) - kept :].flip(1)
    first, second = weights.split([len(own), len(theirs)])
    leading = sketch.new_empty(len(sketch), kept)
    for rows in row_blocks(len(sketch)):
        scaled = scale[rows].unsqueeze(-1) * columns[rows].double()
        leading[rows] = sketch[rows] @ first + scaled @ second
    return torch.linalg.qr(leading).Q
