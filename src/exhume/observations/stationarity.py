"""Trained weights as a combination of gradients of the outputs at the examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.losses import signs
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached, flatten, leaves, scale, subtract

__all__ = [
    "combination",
    "decay_residual",
    "gradient_rows",
    "margins",
    "nonnegative_multipliers",
    "pulled_outputs",
    "relative_residual",
    "soft_margins",
]

# Ridge of the normal equations, as a share of the trace of the Gram matrix.
_RIDGE = 1e-12
_TINY = 1e-300


@formula(
    r"m_i = y_i f(x_i)\ \text{(one output)},\qquad"
    r"m_i = f_{y_i}(x_i) - \max_{j \ne y_i} f_j(x_i)",
    reference="Haim et al. (NeurIPS 2022), eq. 4; Buzaglo et al. (NeurIPS 2023), eq. 5",
)
def margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the margin of every example, shape [M]; positive where it is right.

    Args:
        outputs: f, shape [M, K].
        targets: y, class indices [M] (0 and 1 with one output), or ±1 (float, one
            output); probabilities [M, K] stand for their largest entry.
    """
    if outputs.shape[1] == 1:
        return signs(targets).to(outputs).reshape(-1) * outputs[:, 0]
    index = targets.argmax(dim=1) if targets.is_floating_point() else targets
    own = outputs.gather(1, index[:, None])[:, 0]
    others = outputs.scatter(1, index[:, None], -torch.inf)
    return own - others.max(dim=1).values


@formula(
    r"s_i = f_{y_i}(x_i) - \log \sum_{j \ne y_i} e^{f_j(x_i)},\qquad"
    r"-\nabla \ell_i = (1 - p_{y_i}) \nabla s_i,\quad p = \operatorname{softmax}(f)",
    reference="definition; the cross-entropy is log(1 + exp(−s))",
)
def soft_margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the margin over all other classes at once, shape [M].

    The cross-entropy pulls on every wrong class by its probability. Long training
    leaves the largest alone; weight decay stops before, with several that count.

    Args:
        outputs: f, shape [M, K].
        targets: y, see :func:`margins`, whose value this is with one or two outputs.
    """
    if outputs.shape[1] == 1:
        return margins(outputs, targets)
    index = targets.argmax(dim=1) if targets.is_floating_point() else targets
    own = outputs.gather(1, index[:, None])[:, 0]
    others = outputs.scatter(1, index[:, None], -torch.inf)
    return own - others.logsumexp(dim=1)


def pulled_outputs(
    outputs: Tensor, targets: Tensor | None, *, soft: bool = False
) -> Tensor:
    """Return what the multipliers weigh: margins [M], or all outputs [M·K].

    Args:
        outputs: f, shape [M, K].
        targets: y; None where multipliers of any sign belong to plain outputs.
        soft: take :func:`soft_margins`, as weight decay leaves them.
    """
    if targets is None:
        return outputs.reshape(-1)
    return (soft_margins if soft else margins)(outputs, targets)


def combination(
    task: Task,
    inputs: Tensor,
    targets: Tensor | None,
    multipliers: Tensor,
    weights: Mapping[str, Tensor],
    *,
    soft: bool = False,
) -> Tree:
    """Return Σ_i λ_i ∇_Θ m_i by name, differentiable in inputs and multipliers.

    Args:
        task: the model.
        inputs: x, shape [M, *event].
        targets: y, or None, see :func:`pulled_outputs`.
        multipliers: λ, shape [M], or [M·K] without targets.
        weights: Θ by name.
        soft: see :func:`pulled_outputs`.
    """
    theta = leaves(weights)
    graph = inputs.requires_grad or multipliers.requires_grad
    with torch.enable_grad():
        pulled = pulled_outputs(task.predict(inputs, theta), targets, soft=soft)
        found = torch.autograd.grad(
            multipliers @ pulled,
            list(theta.values()),
            create_graph=graph,
            materialize_grads=True,
        )
    return dict(zip(theta, found, strict=True))


def gradient_rows(
    task: Task,
    inputs: Tensor,
    targets: Tensor | None,
    weights: Mapping[str, Tensor],
    *,
    soft: bool = False,
) -> Tensor:
    """Return ∇_Θ m_i of every example, one row each, shape [M, P] (or [M·K, P]).

    Args:
        task: the model.
        inputs: x, shape [M, *event].
        targets: y, or None, see :func:`pulled_outputs`.
        weights: Θ by name.
        soft: see :func:`pulled_outputs`.
    """
    theta = leaves(weights)
    rows = []
    with torch.enable_grad():
        outputs = task.predict(inputs.detach(), theta)
        pulled = pulled_outputs(outputs, targets, soft=soft)
        for value in pulled:
            found = torch.autograd.grad(
                value, list(theta.values()), retain_graph=True, materialize_grads=True
            )
            rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


@formula(
    r"\hat\lambda = \arg\min_{\lambda \ge 0} \lVert \Theta - \Phi^\top \lambda \rVert^2"
    r" = \arg\min_{\lambda \ge 0} \lVert L^\top \lambda - L^{-1} \Phi\Theta \rVert^2,"
    r"\quad LL^\top = \Phi\Phi^\top",
    reference="Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23",
)
def nonnegative_multipliers(gram: Tensor, moment: Tensor) -> Tensor:
    """Return the multipliers λ ≥ 0 that explain an observation best, shape [M].

    Args:
        gram: ΦΦᵀ, shape [M, M].
        moment: ΦΘ, shape [M].
    """
    from scipy.optimize import nnls

    level = (_RIDGE * gram.diagonal().sum()).clamp_min(_TINY)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + level * eye)
    while bool(failed):
        level = 10 * level
        factor, failed = torch.linalg.cholesky_ex(gram + level * eye)
    right = torch.linalg.solve_triangular(factor, moment[:, None], upper=False)[:, 0]
    system = factor.T.double().cpu().numpy()
    found = nnls(system, right.double().cpu().numpy(), maxiter=50 * len(gram))[0]
    return torch.from_numpy(np.asarray(found)).to(gram)


@formula(
    r"\rho = \min_{\lambda} \frac{\lVert \Theta - \sum_i \lambda_i \nabla_\Theta m_i"
    r" \rVert^2}{\lVert \Theta \rVert^2}",
    reference="Haim et al. (NeurIPS 2022), eq. 6, relative and with the best λ",
)
def relative_residual(
    rows: Tensor, weights: Mapping[str, Tensor], *, any_sign: bool = False
) -> tuple[float, Tensor]:
    """Return the share of Θ that examples do not explain, in [0, 1], and their λ.

    Args:
        rows: ∇_Θ m_i, shape [M, P].
        weights: Θ by name.
        any_sign: allow λ of any sign instead of λ ≥ 0.
    """
    theta = flatten(dict(weights)).to(rows)
    energy = float(theta @ theta)
    if not energy > 0:
        return 0.0, rows.new_zeros(len(rows))
    gram, moment = rows @ rows.T, rows @ theta
    if any_sign:
        found = torch.linalg.lstsq(rows.T, theta[:, None]).solution[:, 0]
    else:
        found = nonnegative_multipliers(gram, moment)
    left = theta - found @ rows
    return float(left @ left) / energy, found


@formula(
    r"\Theta + \frac{1}{\omega} \nabla_\Theta L(\Theta; S) ="
    r" \Theta + \frac{1}{\omega n} \sum_i \ell'(f(x_i), y_i)\, \nabla_\Theta f(x_i)",
    reference="stationarity of L + (ω/2)‖Θ‖²; Buzaglo et al. (NeurIPS 2023), section 5",
)
def decay_residual(
    task: Task,
    inputs: Tensor,
    targets: Tensor,
    weights: Mapping[str, Tensor],
    decay: float,
) -> Tree:
    """Return what is left of weights trained with decay, zero at a stationary point.

    Any smooth loss and any network; the multipliers −ℓ'/(ωn) follow from the examples.

    Args:
        task: model and loss.
        inputs: x, shape [n, *event].
        targets: y.
        weights: Θ by name.
        decay: ω > 0.
    """
    theta = detached(weights)
    gradient = task.gradient(inputs, targets, theta)
    return subtract(dict(weights), scale(-1 / decay, gradient))
