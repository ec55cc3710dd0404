"""Principal directions of public inputs, and how an update moves along them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.task import Task
from exhume.problem.tree import flatten

__all__ = ["principal_directions", "tangents"]

_TOGETHER = 64  # directions at once: the fastest size measured on LeNet
# Variance that every direction has beside what the public examples show, as a share
# of the mean variance: few examples understate the small ones.
_FLOOR = 1e-3


@formula(
    r"\mathrm{Cov}(x) \approx B \Lambda B^\top",
    reference="principal component analysis of public inputs",
)
def principal_directions(public: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading directions of public inputs and the variance along each.

    Args:
        public: at least two examples.
        count: number r of directions at most; N examples have N − 1.

    Returns:
        B, shape [r, *event], orthonormal; Λ, shape [r], positive, float64.

    Raises:
        InvalidInput: fewer than two examples, or all are equal.
    """
    flat = public.inputs.flatten(1).double()
    centred = flat - flat.mean(dim=0)
    if len(flat) < 2 or float(centred.abs().max()) == 0.0:
        msg = (
            f"the {len(flat)} public example(s) do not vary, so they have no principal "
            f"directions; give at least two different ones"
        )
        raise InvalidInput(msg)
    _, values, rows = torch.linalg.svd(centred, full_matrices=False)
    variances = values.square() / (len(flat) - 1)
    kept = min(count, len(flat) - 1, flat.shape[1])
    floor = _FLOOR * float(variances.sum()) / flat.shape[1]
    axes = rows[:kept].reshape(kept, *public.inputs.shape[1:])
    return axes, variances[:kept] + floor


def tangents(
    task: Task, batches: Sequence[Batch], axes: Tensor, names: Sequence[str]
) -> Tensor:
    """Return T_n = J(x_n) B: the derivatives of the update along every direction.

    Each example of a batch moves along each direction, the others staying.

    Args:
        task: model, loss, mode.
        batches: N batches of B examples each.
        axes: r directions, shape [r, *event].
        names: tensors of the update that count.

    Returns:
        shape [N, P, B·r], float64.
    """
    return torch.stack([_along(task, batch, axes, names) for batch in batches])


def _along(task: Task, batch: Batch, axes: Tensor, names: Sequence[str]) -> Tensor:
    inputs = batch.inputs.to(device=task.device, dtype=task.dtype)
    axes = axes.to(inputs)

    def update(x: Tensor) -> Tensor:
        gradient = task.gradient_func(x, batch.targets)
        return flatten({name: gradient[name] for name in names})

    def derivative(direction: Tensor) -> Tensor:
        return torch.func.jvp(update, (inputs,), (direction,))[1]

    blocks = inputs.new_zeros(len(inputs), len(axes), *inputs.shape)
    for example in range(len(inputs)):
        blocks[example, :, example] = axes
    columns = [
        torch.func.vmap(derivative)(part)
        for part in blocks.flatten(0, 1).split(_TOGETHER)
    ]
    return torch.cat(columns).T.double()
