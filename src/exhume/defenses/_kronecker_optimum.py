"""The optimal covariance as one Kronecker product per tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from exhume.defenses._blocks import columns_at_once
from exhume.defenses._matrix_design import LEAST_EIGENVALUE, geometric_mean, power
from exhume.defenses._principal_directions import Tangents
from exhume.defenses._utility_cost import Metric
from exhume.problem.covariance import KroneckerFactors

__all__ = ["kronecker_optimum"]

_TINY = torch.finfo(torch.float64).tiny ** 0.5

_Factors = dict[str, tuple[Tensor, Tensor]]


def kronecker_optimum(
    weighted: Tensor | Tangents, metric: Metric, shapes: Mapping[str, Tensor]
) -> KroneckerFactors:
    """Return the optimum with one Kronecker product per tensor, up to scale.

    With M_l ≈ A ⊗ B and H_l ≈ A′ ⊗ B′ the optimum factorises into the geometric means
    of the factors, so only small matrices are decomposed.

    Args:
        weighted: T_n A, shape [N, P, r]; gone through once.
        metric: H.
        shapes: tensors in the layout of one tangent.
    """
    seen = _factors(weighted, shapes, 0.0, len(weighted))
    cost = _factors([metric.columns], shapes, metric.ridge, 1)
    left, right = {}, {}
    for name, (a, b) in seen.items():
        a_cost, b_cost = cost[name]
        left[name] = power(_floored(geometric_mean(a_cost, a)), 0.5)
        right[name] = power(_floored(geometric_mean(b_cost, b)), 0.5)
    return KroneckerFactors(
        left, right, {name: tuple(like.shape) for name, like in shapes.items()}
    )


def _factors(
    pieces: Iterable[Tensor], shapes: Mapping[str, Tensor], ridge: float, count: int
) -> _Factors:
    """Fit (1/count) Σ c cᵀ + ridge ≈ A ⊗ B, tensor by tensor, by its partial traces."""
    sums = {name: _ridge(like, ridge) for name, like in shapes.items()}
    sizes = [like.numel() for like in shapes.values()]
    for piece in pieces:
        for part in piece.split(columns_at_once(len(piece)), dim=1):
            for name, own in zip(shapes, part.split(sizes), strict=True):
                a, b = sums[name]
                # Rounding in single precision may exceed the floor of eigenvalues.
                matrices = own.double().T.reshape(-1, len(a), len(b))
                a += torch.einsum("nij,nkj->ik", matrices, matrices).to(a) / count
                b += torch.einsum("nij,nik->jk", matrices, matrices).to(b) / count
    return {
        name: (_floored(a), _floored(b) / max(float(a.trace()), _TINY))
        for name, (a, b) in sums.items()
    }


def _ridge(like: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the partial traces of ridge · I over a tensor, read as a matrix."""
    rows = len(like) if like.dim() else 1
    width = like.numel() // rows
    kind = {"dtype": torch.float64, "device": like.device}
    a = ridge * width * torch.eye(rows, **kind)
    return a, ridge * rows * torch.eye(width, **kind)


def _floored(matrix: Tensor) -> Tensor:
    floor = LEAST_EIGENVALUE * float(matrix.diagonal().mean())
    return matrix + max(floor, _TINY) * torch.eye(len(matrix)).to(matrix)
