"""Where candidates of tangent features should be two, while the weights are solved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exhume.attacks.engine.projection_descent import explain
from exhume.attacks.engine.tangent_features import TangentFeatures
from exhume.attacks.unknowns import Unknowns
from exhume.attacks.weights.splitting import smallest_eigenpair
from exhume.formula import formula

__all__ = ["split_apart", "splitting_matrix"]

# Halves are tried at 1, 1/2, ..., 1/256 of the distance from a candidate to the centre:
# large ones jump, small ones keep what the second order promises.
_HALVINGS = 9


@formula(
    r"\tfrac12\lVert r(\text{split}) \rVert^2 - \tfrac12\lVert r \rVert^2 ="
    r" \tfrac{\epsilon^2}{2} v^\top S_i v + O(\epsilon^4),\qquad"
    r" S_i = -\sum_c a_{ic} \nabla_z^2 \langle r, \nabla_\Theta f_c(g(z)) \rangle"
    r" \big|_{z_i},\quad r = v - \sum_{jc} a_{jc} \nabla_\Theta f_c(x_j)",
    reference="Shen, Wang, Qian and Lei (arXiv 2602.08723), with many outputs",
)
def splitting_matrix(
    features: TangentFeatures,
    unknowns: Unknowns,
    points: Tensor,
    weights: Tensor,
    index: int,
) -> Callable[[Tensor], Tensor]:
    """Return v ↦ S_i v: how the misfit bends if a candidate becomes two at z ± εv.

    Each half has half the weights. The residual is fixed and enters by the inner
    products of features alone, so that it is never formed.

    Args:
        features: with the observation.
        unknowns: what z stands for.
        points: z, shape [M, k].
        weights: a, shape [M, points · outputs].
        index: i.

    Returns:
        a function of v, shape [k], that may be called often.
    """
    every = unknowns.inputs([points.detach()])
    at = points[index : index + 1].detach().clone().requires_grad_()
    own = unknowns.inputs([at])
    _, moment = features.products(own)
    pull = moment - features.cross(own, every) @ weights.flatten()
    (first,) = torch.autograd.grad(
        weights[index].dot(pull), at, create_graph=True, materialize_grads=True
    )

    def product(direction: Tensor) -> Tensor:
        if not first.requires_grad:
            return torch.zeros_like(direction)
        (second,) = torch.autograd.grad(
            first,
            at,
            direction.reshape(at.shape),
            retain_graph=True,
            materialize_grads=True,
        )
        return -second.flatten()

    return product


def split_apart(
    features: TangentFeatures,
    unknowns: Unknowns,
    points: Tensor,
    centre: Tensor,
    most: int,
) -> Tensor | None:
    """Split the candidates that gain most, as far apart as explains most.

    Args:
        features: with the observation.
        unknowns: what z stands for.
        points: z at a stall, shape [M, k].
        centre: z of what is common to all examples, the unit of the distance, [k].
        most: candidates that are split at most.

    Returns:
        z with both halves, up to [M + most, k]; None if no split lowers the misfit.
    """
    before = explain(features, unknowns.inputs([points]))
    found = []
    for i, z in enumerate(points):
        product = splitting_matrix(features, unknowns, points, before.weights, i)
        if not bool(product(torch.ones_like(z)).any()):
            # Where a candidate is dead, Lanczos has nothing to begin with.
            continue
        curvature, direction = smallest_eigenpair(product, z)
        found.append((curvature, i, direction))
    # Rounding leaves curvatures of either sign where there is none.
    chosen = sorted((f for f in found if f[0] < 0), key=lambda f: f[0])[:most]
    best, residual = None, before.residual
    for k in range(_HALVINGS):
        halves = _halves(points, centre, chosen, 2.0**-k)
        value = explain(features, unknowns.inputs([halves])).residual
        if value < residual:
            best, residual = halves, value
    return best


def _halves(
    points: Tensor,
    centre: Tensor,
    chosen: list[tuple[float, int, Tensor]],
    share: float,
) -> Tensor:
    first, second = points.clone(), []
    for _, i, direction in chosen:
        far = share * (points[i] - centre).norm()
        first[i] = points[i] + far * direction
        second.append(points[i] - far * direction)
    return torch.cat([first, torch.stack(second)]) if second else first
