"""Training losses by name; registered functions, because lambdas do not pickle."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from exhume.errors import InvalidInput

__all__ = ["LOSSES"]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy L = −(1/B) Σᵢ Σₖ yᵢₖ log softmax(fᵢ)ₖ.

    Args:
        outputs: logits f, shape [B, K].
        targets: class indices [B] int64, or probabilities [B, K].
    """
    return F.cross_entropy(outputs, targets)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error L = (1/B) Σᵢ ‖fᵢ − yᵢ‖² / dim(y).

    Args:
        outputs: predictions f, shape [B, ...] or [B, 1].
        targets: float, as many values per example as the predictions.

    Raises:
        InvalidInput: there are more or fewer targets than predictions.
    """
    if outputs.numel() != targets.numel():
        msg = (
            f"the model predicts shape {list(outputs.shape)}, but the targets have "
            f"shape {list(targets.shape)}; the loss 'mse' compares value by value"
        )
        raise InvalidInput(msg)
    # The gradient of F.mse_loss has no forward derivative (ZeroTensors are immutable).
    return (outputs.reshape(targets.shape) - targets).square().mean()


#: name → loss(outputs, targets) averaged over the batch
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "mse": mean_squared_error,
}
