"""Where a candidate at a stall should be split in two, and what that gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exhume.attacks.weights.descent import Cloud
from exhume.attacks.weights.fit import Fit
from exhume.formula import formula
from exhume.problem.tree import Tree, dot

__all__ = ["Split", "smallest_eigenpair", "split", "splits_of", "splitting_product"]

# Up to so many coordinates the matrix is written down, column by column.
_DENSE = 48
_LANCZOS_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Split:
    """The best split of one candidate.

    Attributes:
        index: of the candidate.
        curvature: λ_min(S_i); negative if splitting lowers the misfit.
        direction: v, in units of z, shape [k], unit length.
    """

    index: int
    curvature: float
    direction: Tensor


@formula(
    r"L(\text{split}) - L = \tfrac{\epsilon^2}{2} v^\top S_i v + O(\epsilon^4),\qquad"
    r" S_i = -c_i \nabla_z^2 \langle \partial L/\partial r,"
    r" \nabla_\Theta m(g(z)) \rangle \big|_{z_i}",
    reference="Shen, Wang, Qian and Lei (arXiv 2602.08723), splitting matrix",
)
def splitting_product(
    fit: Fit,
    point: Tensor,
    target: Tensor | None,
    multiplier: Tensor,
    slope: Tree,
    direction: Tensor,
) -> Tensor:
    """Return S_i v: how the misfit bends if a candidate becomes two at z ± εv.

    Each half has half the multiplier, so nothing changes to first order; S_i is the
    part of the second order that a moving candidate does not feel.

    Args:
        fit: gives L, the relative misfit, and the features.
        point: z_i, shape [k].
        target: its label, shape [1], or None.
        multiplier: c_i = λ_i, shape [1] (or [K] without a label).
        slope: ∂L/∂r at the residual r, by name.
        direction: v, shape [k].
    """
    at = point.detach().requires_grad_()
    inputs = fit.inputs(at[None])
    feature = fit.combination(inputs, target, multiplier)
    (first,) = torch.autograd.grad(dot(slope, feature), at, create_graph=True)
    if not first.requires_grad:
        return torch.zeros_like(point)
    (second,) = torch.autograd.grad(first @ direction, at, materialize_grads=True)
    return -second


def smallest_eigenpair(
    product: Callable[[Tensor], Tensor], like: Tensor
) -> tuple[float, Tensor]:
    """Return the smallest eigenvalue of a symmetric matrix and its eigenvector.

    Args:
        product: v ↦ S v, both of shape [k]; the matrix is never formed if k is large.
        like: a vector of shape [k].
    """
    size = len(like)
    if size <= _DENSE:
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        matrix = torch.stack([product(row) for row in eye])
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return float(values[0]), vectors[:, 0]
    ones = torch.ones_like(like)
    if not bool(product(ones).any()) and not bool(product(_ramp(like)).any()):
        return 0.0, ones / size**0.5  # Lanczos breaks down on a matrix of zeros
    import scipy.sparse.linalg as sparse

    def apply(vector: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(like)
        return product(given).double().cpu().numpy()

    # The annotations of scipy do not know the operator's arguments.
    lanczos: Any = sparse
    operator = lanczos.LinearOperator((size, size), matvec=apply, dtype=np.float64)
    values, vectors = lanczos.eigsh(
        operator, k=1, which="SA", v0=np.ones(size), tol=_LANCZOS_TOLERANCE
    )
    return float(values[0]), torch.from_numpy(vectors[:, 0].copy()).to(like)


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1.0, 2.0, len(like), dtype=like.dtype, device=like.device)


def splits_of(fit: Fit, cloud: Cloud) -> list[Split]:
    """Return the best split of every candidate, the most negative first."""
    count = len(cloud.points)
    weights = cloud.multipliers.reshape(count, -1) / count
    residual = fit.residual(
        fit.inputs(cloud.points), cloud.targets, weights.reshape(-1)
    )
    slope = _slope(fit, residual)
    found = []
    for i, point in enumerate(cloud.points):
        target = None if cloud.targets is None else cloud.targets[i : i + 1]
        product = partial(splitting_product, fit, point, target, weights[i], slope)
        value, direction = smallest_eigenpair(product, point)
        found.append(Split(i, value, direction))
    return sorted(found, key=lambda s: s.curvature)


def _slope(fit: Fit, residual: Tree) -> Tree:
    leaves = {n: t.detach().requires_grad_() for n, t in residual.items()}
    found = torch.autograd.grad(
        fit.misfit(leaves), list(leaves.values()), materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def split(cloud: Cloud, chosen: list[Split], distance: float) -> Cloud:
    """Return a cloud in which chosen candidates are two, at z ± εv with half λ each.

    Args:
        cloud: before.
        chosen: which candidates, along which directions.
        distance: ε > 0, in units of z.
    """
    count = len(cloud.points)
    weights = cloud.multipliers.reshape(count, -1) / count
    points, targets = cloud.points.clone(), cloud.targets
    weights = weights.clone()
    rows = [s.index for s in chosen]
    steps = torch.stack([distance * s.direction for s in chosen])
    new = points[rows] - steps
    points[rows] = points[rows] + steps
    weights[rows] = weights[rows] / 2
    weights = torch.cat([weights, weights[rows]])
    points = torch.cat([points, new])
    if targets is not None:
        targets = torch.cat([targets, targets[rows]])
    multipliers = (len(points) * weights).reshape(-1)
    return replace(cloud, points=points, multipliers=multipliers, targets=targets)
