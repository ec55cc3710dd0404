"""Where candidates of tangent features should be two, while the weights are solved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exhume.attacks.engine.projection_descent import explain
from exhume.attacks.engine.tangent_features import TangentFeatures
from exhume.attacks.weights.splitting import smallest_eigenpair
from exhume.formula import formula

__all__ = ["split_apart", "splitting_matrix"]

# Distances of the halves that are tried, as shares of how far a candidate is from the
# centre: large ones jump, small ones keep what the second order promises.
_SHARES = tuple(2.0**-k for k in range(9))


@formula(
    r"\tfrac12\lVert r(\text{split}) \rVert^2 - \tfrac12\lVert r \rVert^2 ="
    r" \tfrac{\epsilon^2}{2} v^\top S_i v + O(\epsilon^4),\qquad"
    r" S_i = -\sum_c a_{ic} \nabla_x^2 \langle r, \nabla_\Theta f_c(x) \rangle"
    r" \big|_{x_i},\quad r = v - \sum_{jc} a_{jc} \nabla_\Theta f_c(x_j)",
    reference="Shen, Wang, Qian and Lei (arXiv 2602.08723), with many outputs",
)
def splitting_matrix(
    features: TangentFeatures, inputs: Tensor, weights: Tensor, index: int
) -> Callable[[Tensor], Tensor]:
    """Return v ↦ S_i v: how the misfit bends if a candidate becomes two at x ± εv.

    Each half has half the weights. The residual is fixed and enters by the inner
    products of features alone, so that it is never formed.

    Args:
        features: with the observation.
        inputs: x, shape [M, *event].
        weights: a, shape [M, points · outputs].
        index: i.

    Returns:
        a function of v, shape [d], that may be called often.
    """
    all_inputs = inputs.detach()
    at = all_inputs[index : index + 1].clone().requires_grad_()
    _, moment = features.products(at)
    pull = moment - features.cross(at, all_inputs) @ weights.flatten()
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
    features: TangentFeatures, inputs: Tensor, centre: Tensor, most: int
) -> Tensor | None:
    """Split the candidates that gain most, as far apart as explains most.

    Args:
        features: with the observation.
        inputs: x at a stall, shape [M, *event].
        centre: common to all examples, the unit of the distance.
        most: candidates that are split at most.

    Returns:
        x with both halves, up to [M + most, *event]; None if no split lowers the
        misfit.
    """
    told = explain(features, inputs)
    found = []
    for i, x in enumerate(inputs):
        product = splitting_matrix(features, inputs, told.weights, i)
        if not bool(product(torch.ones_like(x.flatten())).any()):
            # Where a candidate is dead, Lanczos has nothing to begin with.
            continue
        curvature, direction = smallest_eigenpair(product, x.flatten())
        found.append((curvature, i, direction))
    # Rounding leaves curvatures of either sign where there is none.
    chosen = sorted((f for f in found if f[0] < 0), key=lambda f: f[0])[:most]
    best, residual = None, told.residual
    for share in _SHARES:
        halves = _halves(inputs, centre, chosen, share)
        value = explain(features, halves).residual
        if value < residual:
            best, residual = halves, value
    return best


def _halves(
    inputs: Tensor,
    centre: Tensor,
    chosen: list[tuple[float, int, Tensor]],
    share: float,
) -> Tensor:
    first, second = inputs.clone(), []
    for _, i, direction in chosen:
        far = share * (inputs[i] - centre).norm()
        step = far * direction.reshape(inputs[i].shape)
        first[i] = inputs[i] + step
        second.append(inputs[i] - step)
    return torch.cat([first, torch.stack(second)]) if second else first
