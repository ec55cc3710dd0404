"""Principal directions of public inputs, and how an update moves along them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.defenses._blocks import columns_at_once
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.batch import Batch
from exhume.problem.task import Task
from exhume.problem.tree import flatten

__all__ = ["Tangents", "principal_directions", "tangents"]

_STORED = 2**29  # bytes of tangents that are kept
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


@dataclass(frozen=True, eq=False)
class Tangents:
    """T_n A for n = 1 … N, computed anew whenever they are gone through.

    Attributes:
        task: model, loss, mode.
        batches: N batches of B examples each.
        axes: directions, shape [r, *event].
        names: tensors of the update that count.
        weight: A, shape [B·r, k]; the identity if None.
        dtype: of what is computed.
    """

    task: Task
    batches: Sequence[Batch]
    axes: Tensor
    names: Sequence[str]
    weight: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, P and the number of columns."""
        parameters = self.task.parameters()
        rows = sum(parameters[name].numel() for name in self.names)
        moves = len(self.batches[0]) * len(self.axes)
        columns = moves if self.weight is None else self.weight.shape[1]
        return len(self.batches), rows, columns

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield T_n A, one after the other."""
        return (self._along(batch) for batch in self.batches)

    def __matmul__(self, weight: Tensor) -> Tangents:
        """Return T_n A W: the derivatives along other combinations of directions."""
        return replace(
            self, weight=weight if self.weight is None else self.weight @ weight
        )

    def _along(self, batch: Batch) -> Tensor:
        inputs = batch.inputs.to(device=self.task.device, dtype=self.task.dtype)

        def update(x: Tensor) -> Tensor:
            gradient = self.task.gradient_func(x, batch.targets)
            return flatten({name: gradient[name] for name in self.names})

        def derivative(direction: Tensor) -> Tensor:
            return torch.func.jvp(update, (inputs,), (direction,))[1]

        _, rows, count = self.shape
        found = inputs.new_empty(count, rows, dtype=self.dtype)
        together = columns_at_once(rows)
        for own, part in zip(
            found.split(together), self._moves(inputs).split(together), strict=True
        ):
            own.copy_(torch.func.vmap(derivative)(part))
        return found.T

    def _moves(self, inputs: Tensor) -> Tensor:
        """Return how the batch moves: one example along one axis, then weighted."""
        count, axes = len(inputs), self.axes.to(inputs)
        moves = inputs.new_zeros(count, len(axes), *inputs.shape)
        for example in range(count):
            moves[example, :, example] = axes
        if self.weight is None:
            return moves.flatten(0, 1)
        flat = self.weight.to(inputs).T @ moves.flatten(0, 1).flatten(1)
        return flat.reshape(-1, *inputs.shape)


def tangents(
    task: Task, batches: Sequence[Batch], axes: Tensor, names: Sequence[str]
) -> Tensor | Tangents:
    """Return T_n = J(x_n) B: the derivatives of the update along every direction.

    Each example of a batch moves along each direction, the others staying.

    Args:
        task: model, loss, mode.
        batches: N batches of B examples each.
        axes: r directions, shape [r, *event].
        names: tensors of the update that count.

    Returns:
        shape [N, P, B·r]; float64 in memory if that takes 512 MB at most, else float32,
        computed again whenever it is gone through.
    """
    found = Tangents(task, batches, axes, names)
    if math.prod(found.shape) * torch.float64.itemsize > _STORED:
        return found
    return torch.stack(list(replace(found, dtype=torch.float64)))
