"""Training losses by name; registered functions, because lambdas do not pickle."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = ["LOSSES", "logistic", "predicted_classes", "signs"]


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
    _check_one_target_per_output("mse", outputs, targets)
    # The gradient of F.mse_loss has no forward derivative (ZeroTensors are immutable).
    return (outputs.reshape(targets.shape) - targets).square().mean()


@formula(
    r"L = \tfrac1B\sum_i \log\left(1 + e^{-y_i f_i}\right),\quad y_i \in \{-1, 1\}",
    reference="Haim, Vardi, Yehudai, Shamir and Irani (NeurIPS 2022), section 2",
)
def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean logistic loss L = (1/B) Σᵢ log(1 + exp(−yᵢ fᵢ)) of one output.

    Args:
        outputs: scores f, shape [B] or [B, 1].
        targets: classes 0 and 1 (int64), which stand for y = −1 and 1, or y itself
            (float), shape [B] or [B, 1].

    Raises:
        InvalidInput: the model has more than one output.
    """
    _check_one_target_per_output("logistic", outputs, targets)
    y = signs(targets).to(outputs.dtype).reshape(outputs.shape)
    # softplus(−y f) as a log-sum-exp: its derivatives of every order stay exact.
    return torch.logaddexp(torch.zeros_like(outputs), -y * outputs).mean()


def signs(targets: Tensor) -> Tensor:
    """Return y in {−1, 1} of classes 0 and 1; real targets stay as they are."""
    return targets if targets.is_floating_point() else 2 * targets - 1


def predicted_classes(loss: str, outputs: Tensor) -> Tensor:
    """Return the classes that outputs [B, K] stand for, shape [B].

    Args:
        loss: a name in ``LOSSES``; the sign of the one output of ``logistic`` decides.
        outputs: f, shape [B, K].
    """
    if loss == "logistic":
        return (outputs.reshape(len(outputs)) > 0).long()
    return outputs.argmax(dim=1)


def _check_one_target_per_output(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.numel() == targets.numel():
        return
    wanted = {"logistic": "needs a model with one output"}
    msg = (
        f"the model predicts shape {list(outputs.shape)}, but the targets have shape "
        f"{list(targets.shape)}; the loss {name!r} "
        f"{wanted.get(name, 'compares value by value')}"
    )
    raise InvalidInput(msg)


#: name → loss(outputs, targets) averaged over the batch
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "logistic": logistic,
    "mse": mean_squared_error,
}
