"""Lengths of estimates, from hidden biases or the network's own softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exhume.attacks.two_layer.implied import outputs
from exhume.attacks.two_layer.locate import Located
from exhume.attacks.two_layer.recovery import Recovered
from exhume.attacks.two_layer.signs import scale_unknown
from exhume.formula import formula
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.task import Task

__all__ = ["bias_factors", "consistent_norms"]

_LEFT_OVER = 0.01  # share of r t that a length may leave unexplained


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

    if not task.criterion.softmax or problem.batch_size is UNKNOWN:
        return None
    if scale_unknown(problem):
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
