"""Training losses: objects that say what their outputs and targets are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.registry import did_you_mean

__all__ = ["LOSSES", "Loss", "logistic", "loss_named", "signs"]


class Loss(ABC):
    """A training loss, a mean over the batch; leaves are frozen dataclasses.

    Nothing compares the name of a loss: what depends on it is asked here.

    Attributes:
        name: as settings, files and tasks spell it.
        real: targets are real numbers, as private as the inputs; else they are classes.
        softmax: outputs are logits of classes: the loss reads their softmax, ∂L/∂fᵢ is
            (softmax fᵢ − yᵢ)/B, and targets may be probabilities.
        margin: it falls towards zero as the margins of the classes grow, without a
            minimum, and its gradient with it.
    """

    name: ClassVar[str]
    real: ClassVar[bool] = False
    softmax: ClassVar[bool] = False
    margin: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar L, twice differentiable in both.

        Args:
            outputs: f, shape [B, K].
            targets: y, class indices [B] int64, or floating point.
        """

    def __str__(self) -> str:
        return self.name

    def classes(self, outputs: Tensor) -> Tensor:
        """Return the classes that outputs [B, K] stand for, shape [B]."""
        return outputs.argmax(dim=1)

    def class_count(self, outputs: int) -> int:
        """Return how many classes K outputs tell apart.

        Raises:
            InvalidInput: the loss cannot train as many outputs.
        """
        return outputs

    def outputs_for(self, classes: int, found: int) -> int:
        """Return the number K of outputs of a model for class labels.

        Args:
            classes: as the settings give it; 0 takes it from the labels.
            found: classes among the labels of the data.

        Raises:
            InvalidInput: there are more labels than classes.
        """
        if classes and classes < found:
            msg = (
                f"classes is {classes}, but the data has labels up to {found - 1}; "
                f"set classes to at least {found}, or 0 to take it from the data"
            )
            raise InvalidInput(msg)
        return classes or max(found, 2)

    def classes_of_residuals(self, residuals: Tensor) -> Tensor | None:
        """Return the classes that residuals ∂L/∂f tell, or None if they tell none.

        Args:
            residuals: shape [B, K], up to positive factors.
        """
        del residuals

    def random_score(self, outputs: Tensor, source: torch.Generator) -> Tensor:
        """Return a scalar of gradient h, E[h hᵀ] being the Gauss–Newton matrix of B·L.

        Args:
            outputs: f, shape [B, K], differentiable.
            source: of labels drawn from the model itself, or of signs, on the CPU.

        Raises:
            InvalidInput: the loss does not say how.
        """
        del outputs, source
        msg = (
            f"the loss {self.name!r} has no random score, which the curvature of the "
            f"loss needs; give it one, or choose another metric of the defense"
        )
        raise InvalidInput(msg)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Mean cross-entropy L = −(1/B) Σᵢ Σₖ yᵢₖ log softmax(fᵢ)ₖ."""

    name: ClassVar[str] = "cross-entropy"
    softmax: ClassVar[bool] = True
    margin: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return L for class indices [B] int64, or probabilities [B, K]."""
        return F.cross_entropy(outputs, targets)

    def classes_of_residuals(self, residuals: Tensor) -> Tensor:
        """Return the one entry that may be negative: softmax f − y < 0 at y alone."""
        return residuals.argmin(dim=1)

    def random_score(self, outputs: Tensor, source: torch.Generator) -> Tensor:
        """Return B·L at labels drawn from softmax f."""
        chances = outputs.detach().double().softmax(dim=-1).cpu()
        labels = torch.multinomial(chances, 1, generator=source).to(outputs.device)
        return -outputs.log_softmax(dim=-1).gather(1, labels).sum()


@dataclass(frozen=True)
class Logistic(Loss):
    """Mean logistic loss L = (1/B) Σᵢ log(1 + exp(−yᵢ fᵢ)) of one output."""

    name: ClassVar[str] = "logistic"
    margin: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return L for classes 0 and 1, or for y = ±1, see :func:`logistic`."""
        return logistic(outputs, targets)

    def classes(self, outputs: Tensor) -> Tensor:
        """Return 1 where the one output is positive, else 0."""
        return (outputs.reshape(len(outputs)) > 0).long()

    def class_count(self, outputs: int) -> int:
        """Return 2, for one output."""
        if outputs != 1:
            msg = (
                f"the loss 'logistic' needs a model with one output, this one has "
                f"{outputs}; build it with classes = 1, or use 'cross-entropy'"
            )
            raise InvalidInput(msg)
        return 2

    def outputs_for(self, classes: int, found: int) -> int:
        """Return 1, for two classes."""
        if classes in (0, 1) and found <= 2:
            return 1
        got = f"labels up to {found - 1}" if found > 2 else f"classes = {classes}"
        msg = (
            f"the loss 'logistic' is for two classes and one output, got {got}; use "
            f"'cross-entropy', or data with labels 0 and 1 and classes = 0"
        )
        raise InvalidInput(msg)

    def classes_of_residuals(self, residuals: Tensor) -> Tensor:
        """Return the sign: ∂L/∂f = −y σ(−y f)/B has the sign of −y."""
        return (residuals[:, 0] < 0).long()

    def random_score(self, outputs: Tensor, source: torch.Generator) -> Tensor:
        """Return B·L at labels drawn from σ(f)."""
        chances = outputs.detach().double().sigmoid().cpu()
        labels = torch.bernoulli(chances, generator=source).to(outputs)
        return F.softplus((1 - 2 * labels) * outputs).sum()


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Mean squared error L = (1/B) Σᵢ ‖fᵢ − yᵢ‖² / dim(y)."""

    name: ClassVar[str] = "mse"
    real: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return L for real targets, as many per example as there are outputs."""
        _check_one_target_per_output(outputs, targets, "'mse' compares value by value")
        # The gradient of F.mse_loss has no forward derivative: ZeroTensors are
        # immutable.
        targets = targets.to(outputs.dtype)
        return (outputs.reshape(targets.shape) - targets).square().mean()

    def random_score(self, outputs: Tensor, source: torch.Generator) -> Tensor:
        """Return Σ ±√(2/K) f with random signs."""
        signs = torch.randint(0, 2, outputs.shape, generator=source) * 2 - 1
        per_example = outputs.numel() / len(outputs)
        return (2 / per_example) ** 0.5 * (signs.to(outputs) * outputs).sum()


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
    what = "'logistic' needs a model with one output"
    _check_one_target_per_output(outputs, targets, what)
    y = signs(targets).to(outputs.dtype).reshape(outputs.shape)
    # softplus(−y f) as a log-sum-exp: its derivatives of every order stay exact.
    return torch.logaddexp(torch.zeros_like(outputs), -y * outputs).mean()


def signs(targets: Tensor) -> Tensor:
    """Return y in {−1, 1} of classes 0 and 1; real targets stay as they are."""
    return targets if targets.is_floating_point() else 2 * targets - 1


def _check_one_target_per_output(outputs: Tensor, targets: Tensor, what: str) -> None:
    if outputs.numel() == targets.numel():
        return
    msg = (
        f"the model predicts shape {list(outputs.shape)}, but the targets have shape "
        f"{list(targets.shape)}; the loss {what}"
    )
    raise InvalidInput(msg)


#: every loss by its name
LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (CrossEntropy(), Logistic(), MeanSquaredError())
}


def loss_named(name: str) -> Loss:
    """Return the loss of a name.

    Raises:
        InvalidInput: no loss has this name.
    """
    if name not in LOSSES:
        raise InvalidInput(did_you_mean("loss", name, sorted(LOSSES)))
    return LOSSES[name]
