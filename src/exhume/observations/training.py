"""Training to the end: loss-normalised gradient descent to a loss of 1e-8."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import Tree, leaves, norm

__all__ = [
    "Trained",
    "check_descent",
    "check_not_negative",
    "loss_normalised_rate",
    "stationarity",
    "train",
]

# A loss this many times that of the start means divergence, not a bad step.
_DIVERGED = 1e3
# The smallest loss that a step is divided by.
_NO_LOSS = 1e-30


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training to the end gives.

    Attributes:
        weights: Θ_T by name, detached.
        loss: data loss L(Θ_T), without the decay term.
        stationarity: ‖∇L + ωΘ‖ / (ω‖Θ‖) at Θ_T with weight decay; ‖∇L‖ without.
        iterations: steps taken.
        reached: whether the target was reached.
    """

    weights: Tree
    loss: float
    stationarity: float
    iterations: int
    reached: bool

    def task(self, task: Task) -> Task:
        """Return a copy of a task with these weights."""
        trained = task.to(task.dtype)
        with torch.no_grad():
            for name, parameter in trained.parameters().items():
                parameter.copy_(self.weights[name])
        return trained


@formula(
    r"\eta_t = \frac{\eta}{\min(1, 5 L_t)}",
    reference="gradient flow in rescaled time; Nacson et al., AISTATS 2019, section 4",
)
def loss_normalised_rate(rate: float, loss: float) -> float:
    """Return the step size of loss-normalised gradient descent, η / min(1, 5 L).

    With an exponential tail the gradient is proportional to the loss, so plain descent
    crawls; this one follows the same path, with time rescaled.

    Args:
        rate: η > 0.
        loss: L ≥ 0 at the present weights, a mean over the batch.
    """
    return rate / max(min(1.0, 5 * loss), _NO_LOSS)


def train(
    task: Task,
    candidate: Candidate,
    *,
    target_loss: float = 1e-8,
    iterations: int = 20_000,
    rate: float = 0.1,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    strict: bool = False,
) -> Trained:
    """Train by full-batch descent from the weights of a task to a low loss.

    The precision is that of the task; ``task.to(torch.float64)`` for exact work. Steps
    are normalised by the loss for cross-entropy and the logistic loss; for the squared
    error, whose curvature does not vanish, and with weight decay, whose minimum has a
    positive loss, the rate is constant.

    Args:
        task: model, loss, mode and initial weights Θ_0; it is not changed.
        candidate: the examples S.
        target_loss: stop at L ≤ target; with weight decay at a stationarity ≤ target.
        iterations: at most so many steps.
        rate: η > 0.
        weight_decay: ω ≥ 0 of the objective L + (ω/2)‖Θ‖².
        momentum: μ in [0, 1) of the heavy ball.
        strict: raise if the target is not reached.

    Raises:
        InvalidInput: an option is out of range, the loss diverges, or ``strict`` and
            the target was not reached.
    """
    check_descent(iterations, rate, momentum, least=0)
    check_not_negative(target_loss=target_loss, weight_decay=weight_decay)
    # The flow of a loss whose gradient vanishes with it slows down as it falls; the
    # squared error has its own curvature, which limits the step.
    normalised = task.criterion.margin and not weight_decay
    theta = {n: p.detach().clone() for n, p in task.parameters().items()}
    speed = {n: torch.zeros_like(p) for n, p in theta.items()}
    start, steps = math.inf, 0
    while True:
        loss, gradient = _gradient(task, candidate, theta)
        start = loss if steps == 0 else start
        _check_descent(loss, start, steps, rate)
        left = stationarity(theta, gradient, weight_decay)
        reached = (left if weight_decay else loss) <= target_loss
        if reached or steps == iterations:
            break
        step = loss_normalised_rate(rate, loss) if normalised else rate
        for name, value in theta.items():
            pull = gradient[name] + weight_decay * value
            speed[name] = momentum * speed[name] - step * pull
            theta[name] = value + speed[name]
        steps += 1
    if strict and not reached:
        what = "stationarity" if weight_decay else "loss"
        raise _unreached(what, left if weight_decay else loss, target_loss, steps)
    return Trained(theta, loss, left, steps, reached)


def _check_descent(loss: float, start: float, steps: int, rate: float) -> None:
    if math.isfinite(loss) and loss <= _DIVERGED * max(start, 1.0):
        return
    msg = (
        f"training diverged: after {steps} steps the loss is {loss:.3g}, at first it "
        f"was {start:.3g}; lower the rate, now {rate:g}"
    )
    raise InvalidInput(msg)


def _unreached(what: str, got: float, target: float, steps: int) -> InvalidInput:
    return InvalidInput(
        f"training ended after {steps} steps at a {what} of {got:.3g}, above the "
        f"target {target:g}; allow more iterations, or raise the rate"
    )


def stationarity(
    weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], weight_decay: float
) -> float:
    """Return how far weights are from stationary: ‖∇L + ωΘ‖ / (ω‖Θ‖), or ‖∇L‖.

    Args:
        weights: Θ by name.
        gradient: ∇L(Θ) of the data loss.
        weight_decay: ω ≥ 0; without it the norm of the gradient is not divided.
    """
    whole = {n: gradient[n] + weight_decay * weights[n] for n in gradient}
    size = weight_decay * float(norm(dict(weights))) if weight_decay else 1.0
    return float(norm(whole)) / max(size, _NO_LOSS)


def _gradient(task: Task, candidate: Candidate, theta: Tree) -> tuple[float, Tree]:
    at = leaves(theta)
    with torch.enable_grad():
        value = task.loss_value(
            candidate.inputs.detach(), candidate.targets.detach(), at
        )
        found = torch.autograd.grad(value, list(at.values()), materialize_grads=True)
    return float(value.detach()), dict(zip(at, found, strict=True))


def check_not_negative(**values: float) -> None:
    """Raise unless options are numbers from 0.

    Args:
        values: by name.

    Raises:
        InvalidInput: one of them is negative or not finite.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            msg = f"{name} is {value}; expected at least 0"
            raise InvalidInput(msg)


def check_descent(
    iterations: int, rate: float, momentum: float, *, least: int = 1
) -> None:
    """Raise unless descent can run with these options.

    Args:
        iterations: steps.
        rate: η.
        momentum: μ.
        least: number of steps.

    Raises:
        InvalidInput: one of them is out of range.
    """
    if not least <= iterations < math.inf:
        msg = f"iterations is {iterations}; expected at least {least}"
        raise InvalidInput(msg)
    if not 0 < rate < math.inf:
        msg = f"rate is {rate}; expected a learning rate above 0"
        raise InvalidInput(msg)
    if not 0 <= momentum < 1:
        msg = f"momentum is {momentum}; expected at least 0 and below 1"
        raise InvalidInput(msg)
