"""What can be said of an answer from trained weights without the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.attacks.relaxations.span import InSpan
from exhume.attacks.weights.answer import Pool
from exhume.attacks.weights.setting import Setting
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.task import Task

__all__ = ["diagnosis"]

# A loss above this is far from the limit in which weights tell their data.
_LOW_LOSS = 1e-3
# A share of ‖Θ‖² above this that candidates leave unexplained is most of it.
_MOST = 0.5
# Correlation below which restarts that fit equally well disagree.
_DISAGREE = 0.8


def diagnosis(
    problem: Problem,
    setting: Setting,
    pool: Pool,
    inputs: Tensor,
    targets: Tensor | None,
    residual: float,
) -> tuple[str, ...]:
    """Return what can be said of an answer without the truth, in sentences.

    What makes the answer doubtful as a whole comes first.

    Args:
        problem: what the attacker sees.
        setting: fit and centre.
        pool: merged candidates.
        inputs: the answer.
        targets: its labels.
        residual: of the answer.
    """
    fit, count = setting.fit, problem.require(Fact.BATCH_SIZE)
    numbers = sum(t.numel() for t in fit.weights.values())
    unknowns = count * problem.spec.dimension
    losses = None if fit.soft else _losses(fit.task, inputs, targets)
    doubts = _doubts(pool, losses)
    notes = [
        *doubts,
        *setting.notes,
        f"There are {numbers / unknowns:.3g} weights per unknown number "
        f"(p/(nd), {numbers} / {unknowns}).",
        _residuals(pool, residual, count),
        _scores(pool, count),
    ]
    relaxation = fit.unknowns.relaxation
    if isinstance(relaxation, InSpan):
        notes.append(
            f"The first layer shows {relaxation.size} directions beyond its initial "
            f"noise, and candidates are sought in their span: what {count} examples "
            f"have outside of it is lost."
        )
    if pool.spread is not None:
        notes.append(_agreement(pool.spread))
    if not doubts and losses is not None and bool((losses > _LOW_LOSS).any()):
        wrong = int((losses > _LOW_LOSS).sum())
        notes.append(
            f"{wrong} of {len(losses)} reconstructions have a loss above "
            f"{_LOW_LOSS:g}, which examples have not after training to a low loss."
        )
    return tuple(notes)


def _doubts(pool: Pool, losses: Tensor | None) -> list[str]:
    """Return a warning where the equation need not hold.

    The median, because a few wrong reconstructions are no sign of a short training.
    """
    best = min(pool.residuals, default=0.0)
    if losses is not None and float(losses.median()) > _LOW_LOSS:
        what = f"the loss at the median reconstruction is {float(losses.median()):.2g}"
        cause = "the network was not trained to a low loss"
    elif best > _MOST:
        what = f"the best candidates leave {best:.2g} of ‖Θ‖² unexplained"
        cause = "the training had not settled"
    else:
        return []
    return [
        f"Warning: {what}. Either the search failed, or {cause}; then the weights need "
        f"not be a combination of gradients at the data, the equation need not hold, "
        f"and the answer may be anything."
    ]


def _residuals(pool: Pool, residual: float, count: int) -> str:
    best = min(pool.residuals)
    return (
        f"The candidates of the best restart leave {best:.2g} of ‖Θ‖² unexplained, the "
        f"{count} returned ones {residual:.2g}. Little left is no proof: the true data "
        f"leave something too, and an answer that leaves less than they is over-fitted."
    )


def _scores(pool: Pool, count: int) -> str:
    scores = pool.scores.clamp_min(0)
    total = float(scores.sum())
    if not total > 0:
        return "No candidate explains anything."
    shares = scores.cumsum(0) / total
    enough = int((shares < 0.9).sum()) + 1
    return (
        f"{enough} of {len(scores)} merged candidates explain nine tenths; {count} "
        f"examples were sought."
    )


def _agreement(spread: float) -> str:
    text = f"Restarts that fit equally well agree to a mean correlation of {spread:.2f}"
    if spread >= _DISAGREE:
        return f"{text}."
    return (
        f"{text}: other data explain the weights as well, so that a single picture "
        f"proves little."
    )


def _losses(task: Task, inputs: Tensor, targets: Tensor | None) -> Tensor | None:
    """Return the loss of every example, shape [B]."""
    if targets is None:
        return None
    theta = task.parameters()
    with torch.no_grad():
        return torch.stack(
            [
                task.loss_value(x[None], y[None], theta)
                for x, y in zip(inputs, targets, strict=True)
            ]
        )
