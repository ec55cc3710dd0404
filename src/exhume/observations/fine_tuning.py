"""The change of the weights after a training to the end, O = Θ_T − Θ_0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.observations.training import check_descent, check_not_negative, train
from exhume.problem.losses import signs
from exhume.problem.observation import Candidate, ObservationKind, ObservationModel
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached, subtract

__all__ = ["FineTuning", "kernel_regression", "regression_targets", "tangent_features"]

# Steps of the power iteration for the largest eigenvalue, which need not be exact.
_POWER_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class FineTuning(ObservationModel):
    """Train from the weights of the task until the loss is low; share Θ_T − Θ_0.

    Full-batch gradient descent. Whoever has the pre-trained and the fine-tuned
    checkpoint sees this. The attacker holds the task with Θ_0.

    With ``linearised`` the network is replaced by its first-order expansion at Θ_0,
    and the training by its limit: the regression of ±1 (class indices against all
    others, or real targets as they are) on the features ∇_Θ f(x; Θ_0),

    O = Φᵀ (K + εI)⁻¹ (y − f(x; Θ_0)), K = ΦΦᵀ,

    which is what training approaches as the network grows wide.

    Attributes:
        target_loss: train until L ≤ target.
        iterations: at most so many steps.
        rate: step size η; None takes the largest that follows the gradient flow at Θ_0.
        momentum: of the steps, in [0, 1).
        linearised: share the closed form of the linearised network.
        ridge: ε of the closed form, as a share of the mean diagonal of K.

    Raises:
        InvalidInput: an option is out of range.
    """

    target_loss: float = 1e-6
    iterations: int = 50_000
    rate: float | None = None
    momentum: float = 0.9
    linearised: bool = False
    ridge: float = 1e-12

    kind: ClassVar[ObservationKind] = "fine-tuning"
    opaque: ClassVar[str | None] = (
        "The weights were trained to the end: no bound on what such a change tells is "
        "known."
    )

    def __post_init__(self) -> None:
        check_not_negative(target_loss=self.target_loss, ridge=self.ridge)
        rate = 1.0 if self.rate is None else self.rate
        check_descent(self.iterations, rate, self.momentum)

    def forward(self, task: Task, candidate: Candidate) -> Tree:
        """Return Θ_T − Θ_0; only the closed form is differentiable."""
        if self.linearised:
            return self._closed_form(task, candidate)
        inputs, targets = candidate.inputs.detach(), candidate.targets.detach()
        targets = _trained_on(task, inputs, targets)
        start = detached(task.parameters())
        trained = train(
            task,
            Candidate(inputs, targets),
            target_loss=self.target_loss,
            iterations=self.iterations,
            rate=self._rate(task, inputs),
            momentum=self.momentum,
            strict=True,
        )
        return subtract(trained.weights, start)

    def _rate(self, task: Task, inputs: Tensor) -> float:
        if self.rate is not None:
            return self.rate
        # Momentum adds up to 1/(1 − μ) steps; more than the flow leaves the tangents.
        return (1 - self.momentum) * flow_rate(task, inputs)

    def forward_func(self, task: Task, candidate: Candidate) -> Tree:
        """Return Θ_T − Θ_0; only the closed form has transforms."""
        return self.forward(task, candidate)

    def _closed_form(self, task: Task, candidate: Candidate) -> Tree:
        # In double precision: K is inverted, and the change is compared with its span.
        exact = task.to(torch.float64)
        inputs = candidate.inputs.to(torch.float64)
        theta = detached(exact.parameters())
        outputs = exact.predict(inputs, theta)
        wanted = regression_targets(candidate.targets, outputs)
        change = kernel_regression(
            tangent_features(exact, inputs, theta), wanted - outputs, self.ridge
        )
        return {name: t.to(task.dtype) for name, t in change.items()}


@formula(
    r"\Delta\Theta = \Phi^\top (\Phi\Phi^\top + \epsilon I)^{-1} r,\quad"
    r"\epsilon = \rho\, \operatorname{tr}(\Phi\Phi^\top)/N",
    reference="Jacot et al., NeurIPS 2018; Lee et al., NeurIPS 2019, eq. (8)–(11)",
)
def kernel_regression(features: Tree, residuals: Tensor, ridge: float) -> Tree:
    """Return the change of the weights that fits residuals with the least norm.

    Args:
        features: Φ by name, ∇_Θ f_c(x_i), shape [B, C, *parameter].
        residuals: r = y − f(x; Θ_0), shape [B, C].
        ridge: ρ ≥ 0.
    """
    rows = {name: t.flatten(0, 1) for name, t in features.items()}
    flat = [t.flatten(1) for t in rows.values()]
    gram = torch.stack([t @ t.T for t in flat]).sum(dim=0)
    level = ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + level * eye, residuals.reshape(-1))
    return {name: torch.tensordot(weights, t, dims=1) for name, t in rows.items()}


def tangent_features(task: Task, inputs: Tensor, theta: Tree) -> Tree:
    """Return the Jacobian ∇_Θ f_c(x_i; Θ) by name, shape [B, C, *parameter].

    Args:
        task: whose model treats examples one by one.
        inputs: x, shape [B, *event].
        theta: Θ by name.

    Raises:
        InvalidInput: BatchNorm in train mode couples the examples.
    """
    if task.mode == "train" and task.running_statistics:
        msg = (
            "BatchNorm in train mode couples the examples, so that no example has a "
            "gradient of its own; use mode = 'eval'"
        )
        raise InvalidInput(msg)

    def one(point: Tree, example: Tensor) -> Tensor:
        return task.predict(example[None], point)[0]

    return torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0))(theta, inputs)


def regression_targets(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return what the outputs are trained to: ±1 for classes, else the targets.

    Args:
        targets: class indices [B], or real targets of the size of the outputs.
        outputs: f, shape [B, C]; one output takes classes 0 and 1 as −1 and 1.
    """
    if targets.is_floating_point():
        return targets.to(outputs).reshape(outputs.shape)
    if outputs.shape[1] == 1:
        return signs(targets).to(outputs)[:, None]
    classes = torch.nn.functional.one_hot(targets, outputs.shape[1])
    return (2 * classes - 1).to(outputs)


def _trained_on(task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets as the loss of the task takes them: ±1 for the squared error."""
    if not task.criterion.real or targets.is_floating_point():
        return targets
    with torch.no_grad():
        return regression_targets(targets, task.predict(inputs, task.parameters()))


def flow_rate(task: Task, inputs: Tensor) -> float:
    """Return the largest step of gradient descent that does not overshoot at Θ_0.

    It is one over the curvature of the mean loss, at most that of the loss in the
    outputs, 2/C for the squared error, times λ_max(JJᵀ)/B, which power iteration on
    Jacobian-vector products finds. It bounds the curvature of the other losses too.

    Args:
        task: with Θ_0.
        inputs: x, shape [B, *event].
    """
    theta = detached(task.parameters())

    def outputs(point: Tree) -> Tensor:
        return task.predict(inputs, point)

    value, pull, *_ = torch.func.vjp(outputs, theta)
    direction = torch.ones_like(value) / math.sqrt(value.numel())
    largest = 0.0
    for _ in range(_POWER_STEPS):
        (slope,) = pull(direction)
        image = torch.func.jvp(outputs, (theta,), (slope,))[1]
        largest = float(torch.linalg.vector_norm(image))
        if not largest > 0:
            return 1.0
        direction = image / largest
    return 0.5 * value.numel() / largest
