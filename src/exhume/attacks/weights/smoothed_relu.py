"""ReLU forwards, a sigmoid backwards: gradients that see the kinks of neurons."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from exhume.formula import formula
from exhume.problem.task import Task

__all__ = ["SmoothedReLU", "smoothed", "smoothed_relu"]


class _Smoothed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, sharpness: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.sharpness = sharpness
        return z.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grads[0] * torch.sigmoid(ctx.sharpness * z), None


@formula(
    r"\sigma(z) = \max(z, 0),\qquad \sigma'(z) := \frac{1}{1 + e^{-\alpha z}}",
    reference="Haim et al. (NeurIPS 2022), appendix B (the smooth backward of ReLU)",
)
def smoothed_relu(z: Tensor, sharpness: float) -> Tensor:
    """Return max(z, 0), with the derivative 1/(1 + e^{−αz}) instead of a step.

    At a kink, z = 0, the gradient of a trained network is any value between 0 and 1,
    and many neurons sit at the kinks of examples; the sigmoid lets them.

    Args:
        z: any shape.
        sharpness: α > 0.
    """
    return _Smoothed.apply(z, sharpness)  # type: ignore[return-value]


class SmoothedReLU(nn.Module):
    """ReLU with the derivative of a sigmoid, in place of ``nn.ReLU``."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, z: Tensor) -> Tensor:
        """Apply it elementwise."""
        return smoothed_relu(z, self.sharpness)


def smoothed(task: Task, sharpness: float) -> Task | None:
    """Return a copy of a task with smoothed ReLUs; None if it has none to be found.

    Args:
        task: it is not changed; activations must be modules to be found.
        sharpness: α > 0.
    """
    model = copy.deepcopy(task.model)
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, SmoothedReLU(sharpness))
                found = True
    return task.with_model(model) if found else None
