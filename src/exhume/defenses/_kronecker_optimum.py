"""The optimal covariance as one Kronecker product per tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exhume.defenses._matrix_columns import Columns
from exhume.defenses._matrix_design import LEAST_EIGENVALUE, geometric_mean, power
from exhume.defenses._principal_directions import Tangents
from exhume.defenses._utility_cost import Metric
from exhume.problem.covariance import KroneckerFactors

__all__ = ["kronecker_design"]

_TINY = torch.finfo(torch.float64).tiny ** 0.5
# Columns of H that are read together: few enough to span small spaces.
_TOGETHER = 32

_Factors = dict[str, tuple[Tensor, Tensor]]


def kronecker_design(
    seen: Tensor | Tangents,
    metric: Metric,
    shapes: Mapping[str, Tensor],
    prior: Tensor,
    cost: float,
    iterations: int,
) -> KroneckerFactors:
    """Return the optimum with one Kronecker product per tensor.

    With M_l ≈ A ⊗ B and H_l ≈ A′ ⊗ B′ the optimum factorises into the geometric means
    of the factors, so only small matrices are decomposed.

    Args:
        seen: T_n, shape [N, P, r].
        metric: H.
        shapes: tensors in the layout of one tangent.
        prior: Λ, variances of the r directions, shape [r].
        cost: tr(S H) > 0 of the result.
        iterations: 0 maximises the trace bound; more of them approach the maximum of
            the Bayesian Cramér-Rao bound, each from the posterior covariance before.
    """
    tangents = Columns(seen, shapes)
    groups = metric.columns.split(_TOGETHER, dim=1) if metric.columns.numel() else ()
    columns = Columns(groups, shapes)
    dear = _factors(columns, shapes, metric.ridge, 1)

    def optimum(weight: Tensor | None) -> KroneckerFactors:
        form = _optimum(
            _factors(tangents, shapes, 0.0, len(seen), weight), dear, shapes
        )
        return form.scaled(cost / _cost(form, columns, metric.ridge))

    form = optimum(None)
    for _ in range(iterations):
        information = _information(tangents, form, prior) / len(seen)
        form = optimum(torch.linalg.inv(information + torch.diag(1 / prior)))
    return form


def _optimum(
    seen: _Factors, dear: _Factors, shapes: Mapping[str, Tensor]
) -> KroneckerFactors:
    """Return the geometric means of the factors of M and H, up to scale."""
    left, right = {}, {}
    for name, (a, b) in seen.items():
        a_cost, b_cost = dear[name]
        left[name] = power(_floored(geometric_mean(a_cost, a)), 0.5)
        right[name] = power(_floored(geometric_mean(b_cost, b)), 0.5)
    return KroneckerFactors(
        left, right, {name: tuple(like.shape) for name, like in shapes.items()}
    )


def _factors(
    pieces: Columns,
    shapes: Mapping[str, Tensor],
    ridge: float,
    count: int,
    weight: Tensor | None = None,
) -> _Factors:
    """Fit (1/count) Σ c cᵀ + ridge ≈ A ⊗ B, tensor by tensor, by its partial traces.

    The columns c are those of the pieces, or their combinations by a weight.
    """
    sums = {name: _ridge(like, ridge) for name, like in shapes.items()}
    for piece in pieces:
        for name, own in piece.items():
            moved = own if weight is None else own.combined(weight)
            for total, more in zip(sums[name], moved.partial_traces(), strict=True):
                # Rounding in single precision may exceed the floor of eigenvalues.
                total += more / count
    return {
        name: (_floored(a), _floored(b) / max(float(a.trace()), _TINY))
        for name, (a, b) in sums.items()
    }


def _information(tangents: Columns, form: KroneckerFactors, prior: Tensor) -> Tensor:
    """Return Σ_n T_nᵀ S⁻¹ T_n, shape [r, r]."""
    white = {
        name: (torch.linalg.inv(form.left[name]), torch.linalg.inv(form.right[name]))
        for name in form.names
    }
    total = torch.zeros(len(prior), len(prior), dtype=torch.float64)
    for piece in tangents:
        for name, own in piece.items():
            total += own.products(*white[name]).to(total)
    return total.to(prior)


def _cost(form: KroneckerFactors, columns: Columns, ridge: float) -> float:
    """Return tr(S H)."""
    cost = ridge * sum(float(v.sum()) for v in form.diagonal().values())
    for piece in columns:
        for name, own in piece.items():
            found = own.products(form.left[name], form.right[name])
            cost += float(found.trace())
    return cost


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
