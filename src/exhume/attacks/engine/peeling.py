"""Split a batch by peeling: verify inputs that are alone in rows, subtract, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.linear_inversion import (
    Isolated,
    input_of_linear_layer,
    isolated_inputs,
)
from exhume.attacks.engine.linear_layer import LinearLayer
from exhume.problem.event import EventSpec
from exhume.problem.task import Task

__all__ = ["Split", "peel"]

# A found input is exact if its own gradient explains its rows to this relative error.
_VERIFIED = 1e-2


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs per target, which of them were verified, and the gradients it took.

    Attributes:
        inputs: x̂, shape [B, *event]; zeros where nothing was found.
        found: which examples were found, shape [B].
        evaluations: gradients of the model.
    """

    inputs: Tensor
    found: Tensor
    evaluations: int


def peel(
    task: Task,
    spec: EventSpec,
    layer: LinearLayer,
    targets: Tensor,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    *,
    scaled: bool,
) -> Split:
    """Recover the examples of a batch that can be isolated one after the other.

    The gradient of a mean is a mean of gradients, so an example that is known exactly
    can be subtracted; the last one is then alone.

    Args:
        task: the model; examples must not be coupled (no BatchNorm in train mode).
        spec: of one example.
        layer: the biased linear layer that reads the input.
        targets: y of the batch, in any order, shape [B, ...].
        weight_gradient: released ∂L/∂W, shape [m, d].
        bias_gradient: released ∂L/∂b, shape [m].
        scaled: the release was multiplied by an unknown factor.
    """
    state = _Peeling(task, spec, layer, targets, scaled)
    rest = (weight_gradient, bias_gradient)
    smallest = torch.finfo(bias_gradient.dtype).eps ** 0.75 * bias_gradient.abs().max()
    while not bool(state.found.all()):
        missing = int((~state.found).sum())
        if missing == 1:
            rows = (rest[1].abs() > smallest).nonzero().flatten()
            z = input_of_linear_layer(rest[0][rows], rest[1][rows])
            groups = [Isolated(z, rows)] if len(rows) else []
        else:
            groups = isolated_inputs(*rest)
        peeled = state.accept(groups[: 3 * missing], rest[1])
        if peeled is None:
            break
        rest = (rest[0] - peeled[0], rest[1] - peeled[1])
    return Split(state.inputs, state.found, state.evaluations)


class _Peeling:
    """What has been found so far."""

    def __init__(
        self,
        task: Task,
        spec: EventSpec,
        layer: LinearLayer,
        targets: Tensor,
        scaled: bool,  # noqa: FBT001
    ) -> None:
        self.task, self.spec, self.layer = task, spec, layer
        self.targets, self.scaled = targets, scaled
        shape = (len(targets), *spec.shape)
        self.inputs = torch.zeros(shape, dtype=task.dtype, device=task.device)
        self.found = torch.zeros(len(targets), dtype=torch.bool, device=task.device)
        self.evaluations = 0

    def accept(
        self, groups: list[Isolated], bias_gradient: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Keep verified inputs; return their gradient of the layer, or None."""
        from scipy.optimize import linear_sum_assignment

        slots = (~self.found).nonzero().flatten().tolist()
        tried = [[self._explain(g, s, bias_gradient) for s in slots] for g in groups]
        if not tried:
            return None
        costs = torch.tensor([[t[0] for t in row] for row in tried])
        accepted = None
        for i, j in zip(*linear_sum_assignment(costs.numpy()), strict=True):
            error, x, gradient = tried[i][j]
            if error > _VERIFIED:
                continue
            self.inputs[slots[j]], self.found[slots[j]] = x, True
            accepted = (
                gradient
                if accepted is None
                else (accepted[0] + gradient[0], accepted[1] + gradient[1])
            )
        return accepted

    def _explain(
        self, group: Isolated, slot: int, bias_gradient: Tensor
    ) -> tuple[float, Tensor, tuple[Tensor, Tensor]]:
        """Compare the gradient of (input, target) with the rows it was found in."""
        assert self.layer.bias is not None
        z = group.input.reshape(1, *self.spec.shape)
        x = z if self.task.normalise is None else self.task.normalise.undo(z)
        own = self.task.gradient(x, self.targets[slot : slot + 1])
        self.evaluations += 1
        observed, predicted = bias_gradient[group.rows], own[self.layer.bias]
        mine = predicted[group.rows]
        factor = mine.new_tensor(1 / len(self.targets))
        if self.scaled:
            factor = (mine @ observed / mine.square().sum()).nan_to_num().clamp_min(0)
        error = torch.linalg.vector_norm(factor * mine - observed)
        relative = float(error / torch.linalg.vector_norm(observed))
        gradient = (factor * own[self.layer.weight], factor * predicted)
        return min(relative, 1.0), x[0], gradient
