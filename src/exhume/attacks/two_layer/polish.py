"""Least squares in the span of a batch: a few dozen unknowns, from a good start."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.attacks.two_layer.fit import Fitted, Neurons, misfit, predicted
from exhume.formula import formula

__all__ = ["gauss_newton_step", "polished"]

_BLOCK = 8192  # neurons at once, and fewer where their slopes would pass _HELD
_HELD = 2**24  # slopes that are held at once, 128 MB
_DONE = 1e-10  # misfit below which nothing is left to explain


@formula(
    r"\min_{X, r} \sum_j \Big\| G_j - \sum_i (A_j \cdot r_i)\, \sigma'(w_j \cdot x_i)"
    r"\, x_i \Big\|^2 \ \text{over } x_i \in \mathrm{span}(V)",
    reference="ours; Levenberg 1944, Marquardt 1963",
)
def gauss_newton_step(
    neurons: Neurons, inputs: Tensor, residual: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """Take one damped step on inputs and residuals together.

    Args:
        neurons: with the hidden gradient.
        inputs: q, shape [B, k].
        residual: r, shape [B, K].
        damping: λ ≥ 0, as a share of the diagonal of the normal matrix.

    Returns:
        the new inputs and residuals.
    """
    assert neurons.rows is not None
    batch, k = inputs.shape
    count = batch * (k + residual.shape[1])
    normal = torch.zeros(count, count, dtype=torch.float64)
    right = torch.zeros(count, dtype=torch.float64)
    missed = neurons.rows - predicted(neurons, inputs, residual)
    size = max(1, min(_BLOCK, _HELD // (k * count)))
    for start in range(0, len(neurons.points), size):
        block = slice(start, start + size)
        slopes = _slopes(neurons, inputs, residual, block)
        normal += torch.einsum("jka,jkb->ab", slopes, slopes)
        right += torch.einsum("jka,jk->a", slopes, missed[block])
    diagonal = normal.diagonal()
    floor = torch.finfo(normal.dtype).eps * float(diagonal.max())
    damped = normal + torch.diag(damping * diagonal + floor)
    step = torch.linalg.solve(damped, right)
    moved = inputs + step[: batch * k].reshape(batch, k)
    return moved, residual + step[batch * k :].reshape(residual.shape)


def _slopes(neurons: Neurons, inputs: Tensor, residual: Tensor, block: slice) -> Tensor:
    """Return ∂Ĝ_j/∂(q, r) of a block of neurons, shape [n, k, B(k + K)]."""
    points, heads = neurons.points[block], neurons.heads[block]
    arguments = neurons.scale * points @ inputs.T
    if neurons.offset is not None:
        arguments += neurons.offset[block, None]
    first = neurons.sigma.slope(arguments)
    second = neurons.scale * neurons.sigma.curvature(arguments)
    size = heads @ residual.T
    bent = torch.einsum("ni,ik,nl->nkil", size * second, inputs, points)
    identity = torch.eye(inputs.shape[1]).to(inputs)
    straight = torch.einsum("ni,kl->nkil", size * first, identity)
    along = torch.einsum("ni,ik,nc->nkic", first, inputs, heads)
    return torch.cat([(bent + straight).flatten(2), along.flatten(2)], dim=2)


def polished(neurons: Neurons, start: Fitted, steps: int) -> Fitted:
    """Improve inputs until their gradient stops coming nearer.

    Args:
        neurons: with the hidden gradient.
        start: inputs and residuals.
        steps: at most; 0 returns the start.
    """
    if neurons.rows is None or steps == 0:
        return start
    inputs, residual, best = start.inputs, start.residuals, start.misfit
    damping = 1e-3
    for _ in range(steps):
        moved, changed = gauss_newton_step(neurons, inputs, residual, damping)
        error = misfit(neurons, moved, changed)
        if error < best:
            gained = 1 - error / best
            inputs, residual, best, damping = moved, changed, error, damping / 10
            if best < _DONE or gained < 1e-6:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    if neurons.homogeneous:
        # Only r ‖x‖ shows: keep the norms that were assumed.
        assumed = start.inputs.norm(dim=1) / inputs.norm(dim=1)
        inputs = inputs * assumed.unsqueeze(1)
        residual = residual / assumed.unsqueeze(1)
    return Fitted(inputs, residual, best, start.sign_known, start.norm_known)
