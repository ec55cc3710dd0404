"""Signs and lengths that the hidden gradient leaves open, from everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exhume.attacks.engine.linear_layer import scale_is_unknown
from exhume.attacks.two_layer.implied import implied_targets, outputs
from exhume.attacks.two_layer.locate import Located
from exhume.attacks.two_layer.recovery import Recovered
from exhume.formula import formula
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.task import Task

_LEFT_OVER = 0.01  # share of r t that a length may leave unexplained
_TELLING = 1e-3  # relative difference from which two signs are told apart

__all__ = ["Signs", "bias_factors", "consistent_norms", "resolve_signs", "softmax_sign"]


@dataclass(frozen=True, eq=False)
class Signs:
    """What every estimate is to be multiplied with.

    Attributes:
        values: ±1, shape [B].
        known: whether something determined it, shape [B].
        notes: sentences on what did.
    """

    values: Tensor
    known: Tensor
    notes: tuple[str, ...]


@formula(
    r"r_{ic} = \tfrac1B (p_{ic} - 1[c = y_i]):\ \text{one entry is negative}",
    reference="gradient of the cross-entropy; Wang, Lee and Lei (AISTATS 2023), rem. 1",
)
def softmax_sign(residuals: Tensor) -> Tensor:
    """Return the signs that leave every row of residuals one large negative entry.

    Args:
        residuals: ± r, shape [B, K], K ≥ 3.

    Returns:
        ±1, shape [B].
    """
    largest = residuals.gather(1, residuals.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest.squeeze(1) > 0, -1.0, 1.0).to(residuals)


def resolve_signs(
    problem: Problem, task: Task, located: Located, found: Recovered
) -> Signs:
    """Choose signs by what is public: softmax residuals, then the range of the data.

    What nothing determines is set so that the first residual is positive, as the bias
    trick makes it.

    Args:
        problem: what the attacker sees.
        task: its model.
        located: the last two layers.
        found: the estimate.
    """
    signs, known = torch.ones(len(found.inputs)).to(found.inputs), found.sign_known
    if bool(known.all()):
        return Signs(signs, known, ())
    if task.loss == "cross-entropy" and found.residuals.shape[1] > 2:
        chosen = softmax_sign(found.residuals)
        note = "Signs were read off the softmax: one residual of each is negative."
        return Signs(signs.where(known, chosen), torch.ones_like(known), (note,))
    spec = problem.spec
    if located.reads_input and spec.low is not None and spec.peak is not None:
        inside = _outside(problem, task, found.inputs)
        turned = _outside(problem, task, -found.inputs)
        chosen = torch.where(inside <= turned, 1.0, -1.0).to(signs)
        if bool((known | (inside != turned)).all()):
            note = "Signs were chosen by the range of the data."
            return Signs(signs.where(known, chosen), torch.ones_like(known), (note,))
    if problem.targets is not UNKNOWN and problem.targets.is_floating_point():
        straight, turned = (
            _distance(located, side * found.inputs, side * found.residuals, problem)
            for side in (1, -1)
        )
        chosen = torch.where(straight <= turned, 1.0, -1.0).to(signs)
        told = (straight - turned).abs() > _TELLING * torch.maximum(straight, turned)
        note = "Signs were chosen by the known targets, where these tell them apart."
        return Signs(signs.where(known, chosen), known | told, (note,))
    first = found.residuals[:, 0]
    chosen = torch.where(first >= 0, 1.0, -1.0).to(signs)
    note = "Signs that nothing determines were set so that residuals are positive."
    return Signs(signs.where(known, chosen), known, (note,))


def _outside(problem: Problem, task: Task, inputs: Tensor) -> Tensor:
    """Return how far inputs are outside of the range of the data, shape [B]."""
    z = inputs.reshape(len(inputs), *problem.spec.shape)
    x = z if task.normalise is None else task.normalise.undo(z)
    return (x - problem.spec.clamp(x)).flatten(1).norm(dim=1)


def _distance(
    located: Located, inputs: Tensor, residuals: Tensor, problem: Problem
) -> Tensor:
    """Return how far implied targets are from the nearest known one, shape [B]."""
    assert problem.targets is not UNKNOWN
    implied = implied_targets(located, inputs, residuals)
    known = problem.targets.reshape(-1, implied.shape[1]).to(implied)
    return torch.cdist(implied, known).amin(dim=1)


@formula(
    r"\min_t \| t\, r(t \hat u) - \widehat{(r t)} \|,\quad "
    r"r(x) = \tfrac1B (\mathrm{softmax} f(x) - e_y)",
    reference="ours: the network's own residual at the estimate",
)
def consistent_norms(
    problem: Problem, task: Task, located: Located, found: Recovered
) -> Tensor | None:
    """Find the lengths at which the network's own residuals are the estimated ones.

    A homogeneous activation shows the product of residual and length only.

    Args:
        problem: what the attacker sees.
        task: its loss must be the cross-entropy.
        located: the last two layers, without hidden bias.
        found: the estimate with unit inputs.

    Returns:
        t, shape [B], or None where the loss gives no residual without targets.
    """
    from scipy.optimize import minimize_scalar

    if task.loss != "cross-entropy" or problem.batch_size is UNKNOWN:
        return None
    law = None if problem.law is UNKNOWN else problem.law
    if scale_is_unknown(law, problem.observed):
        return None
    size, lengths = int(problem.batch_size), []
    for direction, product in zip(found.inputs, found.residuals, strict=True):

        def error(log: float, u: Tensor = direction, rt: Tensor = product) -> float:
            t = 10**log
            residual = outputs(located, t * u[None])[0].softmax(dim=0)
            residual[int(rt.argmin())] -= 1
            return float((t * residual / size - rt).norm())

        grid = torch.linspace(-2, 3, 101).tolist()
        errors = [error(log) for log in grid]
        dips = [
            grid[i]
            for i in range(1, len(grid) - 1)
            if errors[i] <= min(errors[i - 1], errors[i + 1])
        ]
        ends: list[Any] = [
            minimize_scalar(error, bounds=(dip - 0.05, dip + 0.05), method="bounded")
            for dip in dips
        ]
        best = min(ends, key=lambda end: float(end.fun), default=None)
        if best is None or float(best.fun) > _LEFT_OVER * float(product.norm()):
            return None
        lengths.append(10 ** float(best.x))
    return torch.tensor(lengths).to(found.inputs)


@formula(
    r"\frac{\partial L}{\partial b_j} = \textstyle\sum_i \kappa_i\,"
    r" (A_j \cdot \hat r_i)\, \sigma'(w_j \cdot \hat x_i),\quad \kappa_i = \pm 1 / t_i",
    reference="ours: a hidden bias reads a feature that is 1",
)
def bias_factors(located: Located, found: Recovered) -> Tensor | None:
    """Return κ: the sign of an estimate, and 1 over the length that it lacks, [B].

    Args:
        located: with the gradient of hidden biases that are zero.
        found: the estimate.
    """
    if located.bias_gradient is None:
        return None
    view = located.view
    arguments = view.weight[slice(None)].double() @ found.inputs.T
    sizes = view.output.T.double() @ found.residuals.T
    features = view.sigma.slope(arguments) * sizes
    shown = located.bias_gradient.unsqueeze(1)
    fitted = torch.linalg.lstsq(features, shown, driver="gelsd").solution.squeeze(1)
    return fitted if bool((fitted.abs() > 1e-6).all()) else None
