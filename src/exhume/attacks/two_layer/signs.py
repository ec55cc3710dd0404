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
from exhume.attacks.two_layer.totals import residual_total, signs_of_total
from exhume.formula import formula
from exhume.problem.knowledge import UNKNOWN, Problem, Unknown
from exhume.problem.task import Task

__all__ = [
    "Signs",
    "bias_factors",
    "consistent_norms",
    "resolve_signs",
    "scale_unknown",
    "softmax_sign",
]

_TELLING = 1e-3  # relative difference from which two signs are told apart
_ABOVE = 1.5  # times a target the bias of the last layer is, where it was put there

_LEFT_OVER = 0.01  # share of r t that a length may leave unexplained


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
    """Choose signs by what else is seen and known, in the order of its weight.

    Softmax residuals of three classes or more; the range of the data; the sum of all
    residuals, and how many examples have which of two labels; targets that are known,
    or, where the last layer adds a large constant (the bias trick), small ones. What
    nothing determines is set so that the first residual is positive.

    Args:
        problem: what the attacker sees.
        task: its model.
        located: the last two layers.
        found: the estimate.
    """
    signs, known = torch.ones(len(found.inputs)).to(found.inputs), found.sign_known
    notes = []
    for evidence in (_by_softmax, _by_range, _by_total, _by_targets):
        if bool(known.all()):
            break
        chosen, told, note = evidence(problem, task, located, found)
        told = told & ~known
        if bool(told.any()):
            signs, known = signs.where(~told, chosen), known | told
            notes.append(note)
    if not bool(known.all()):
        positive = torch.where(found.residuals[:, 0] >= 0, 1.0, -1.0).to(signs)
        signs = signs.where(known, positive)
        notes.append("Signs that nothing determines make the first residual positive.")
    return Signs(signs, known, tuple(notes))


_Evidence = tuple[Tensor, Tensor, str]


def _nothing(found: Recovered) -> _Evidence:
    told = torch.zeros(len(found.inputs), dtype=torch.bool)
    return torch.ones(len(told)).to(found.inputs), told, ""


def _by_softmax(_: Problem, task: Task, __: Located, found: Recovered) -> _Evidence:
    if not task.criterion.softmax or found.residuals.shape[1] < 3:
        return _nothing(found)
    chosen = softmax_sign(found.residuals)
    note = "Signs were read off the softmax: one residual of each is negative."
    return chosen, torch.ones(len(chosen), dtype=torch.bool), note


def _by_range(
    problem: Problem, task: Task, located: Located, found: Recovered
) -> _Evidence:
    spec = problem.spec
    if not located.reads_input or spec.low is None or spec.peak is None:
        return _nothing(found)
    inside = _outside(problem, task, found.inputs)
    turned = _outside(problem, task, -found.inputs)
    chosen = torch.where(inside <= turned, 1.0, -1.0).to(found.inputs)
    return chosen, inside != turned, "Signs were chosen by the range of the data."


def _by_total(
    problem: Problem, task: Task, located: Located, found: Recovered
) -> _Evidence:
    first, targets = None, problem.targets
    two = task.criterion.softmax and found.residuals.shape[1] == 2
    if two and targets is not UNKNOWN and len(targets) == len(found.inputs):
        first = int((targets == 0).sum())
    total = residual_total(located, found)
    chosen, told = signs_of_total(found.residuals, total, first, accuracy=found.misfit)
    return chosen, told, "Signs were chosen by the sum of all residuals."


def _by_targets(
    problem: Problem, task: Task, located: Located, found: Recovered
) -> _Evidence:
    known = problem.targets
    real = known is UNKNOWN or known.is_floating_point()
    if not (task.criterion.real and real):
        return _nothing(found)
    if scale_unknown(problem):
        return _nothing(found)
    straight, turned = (
        _from_targets(located, side * found.inputs, side * found.residuals, known)
        for side in (1, -1)
    )
    chosen = torch.where(straight <= turned, 1.0, -1.0).to(found.inputs)
    if known is UNKNOWN:
        constant = float(located.output_bias.norm())
        told = _ABOVE * torch.minimum(straight, turned) < constant
        note = "Signs give targets that are small beside the bias of the last layer."
        return chosen, told, note
    larger = torch.maximum(straight, turned)
    told = (straight - turned).abs() > _TELLING * larger
    return chosen, told, "Signs were chosen by the known targets."


def scale_unknown(problem: Problem) -> bool:
    """Say whether a defense may have scaled the gradient, as clipping does."""
    law = None if problem.law is UNKNOWN else problem.law
    return scale_is_unknown(law, problem.observed)


def _outside(problem: Problem, task: Task, inputs: Tensor) -> Tensor:
    """Return how far inputs are outside of the range of the data, shape [B]."""
    z = inputs.reshape(len(inputs), *problem.spec.shape)
    x = z if task.normalise is None else task.normalise.undo(z)
    return (x - problem.spec.clamp(x)).flatten(1).norm(dim=1)


def _from_targets(
    located: Located, inputs: Tensor, residuals: Tensor, targets: Tensor | Unknown
) -> Tensor:
    """Return how far implied targets are from the nearest known one, or from 0, [B]."""
    implied = implied_targets(located, inputs, residuals)
    if targets is UNKNOWN:
        return implied.norm(dim=1)
    known = targets.reshape(-1, implied.shape[1]).to(implied)
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
