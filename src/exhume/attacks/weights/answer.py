"""From clouds of candidates to an answer, and what can be said of it, truth-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.candidates import correlations, merge_duplicates
from exhume.attacks.relaxations.span import InSpan
from exhume.attacks.weights.descent import Cloud
from exhume.attacks.weights.setting import Setting, classes_of
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.task import Task

__all__ = [
    "Pool",
    "choose",
    "diagnosis",
    "pool_candidates",
    "raw_candidates",
    "spread_of_restarts",
]

# Correlation from which two candidates show the same example.
_SAME = 0.8
# Restarts fit equally well if their residuals differ by less than this factor.
_EQUAL = 1.5
_TINY = 1e-300
# A loss above this is far from the limit in which weights tell their data.
_LOW_LOSS = 1e-3
# A share of ‖Θ‖² above this that candidates leave unexplained is most of it.
_MOST = 0.5
# Correlation below which restarts that fit equally well disagree.
_DISAGREE = 0.8


@dataclass(frozen=True, eq=False)
class Pool:
    """All candidates of all restarts, merged, the highest score first.

    Attributes:
        inputs: x, shape [M, *event], inside the range.
        targets: labels [M], or None.
        scores: Σ λ_i²‖∇m_i‖² over what was merged, shape [M], in units of ‖Θ‖².
        residuals: plain relative residual of every restart.
        spread: see :func:`spread_of_restarts`; None for one restart.
    """

    inputs: Tensor
    targets: Tensor | None
    scores: Tensor
    residuals: tuple[float, ...]
    spread: float | None


def pool_candidates(setting: Setting, clouds: Sequence[Cloud]) -> Pool:
    """Merge the candidates of all restarts, label by label.

    Args:
        setting: fit and centre.
        clouds: of restarts that did not diverge.
    """
    fit = setting.fit
    inputs, scores, residuals = [], [], []
    for cloud in clouds:
        x = fit.unknowns.harden(fit.inputs(cloud.points))
        left, _, score = fit.explained(x, cloud.targets)
        inputs.append(x)
        scores.append(score / max(fit.energy, _TINY) / len(clouds))
        residuals.append(left)
    spread = spread_of_restarts(setting, inputs, scores, residuals)
    _, targets = raw_candidates(setting, clouds)
    x, targets, score = _merged(setting, torch.cat(inputs), targets, torch.cat(scores))
    return Pool(x, targets, score, tuple(residuals), spread)


def _merged(
    setting: Setting, inputs: Tensor, targets: Tensor | None, scores: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    parts = []
    kinds = [None] if targets is None else torch.unique(targets).tolist()
    for kind in kinds:
        rows = slice(None) if targets is None else targets == kind
        found = merge_duplicates(
            inputs[rows], scores[rows], centre=setting.centre, threshold=_SAME
        )
        own = torch.full((len(found.scores),), -1 if kind is None else kind)
        parts.append((found.inputs, own, found.scores))
    x, label, score = (torch.cat(part) for part in zip(*parts, strict=True))
    order = score.argsort(descending=True, stable=True)
    return x[order], None if targets is None else label[order], score[order]


def raw_candidates(
    setting: Setting, clouds: Sequence[Cloud]
) -> tuple[Tensor, Tensor | None]:
    """Return all candidates of all restarts with their labels, before any merging."""
    fit = setting.fit
    soft = torch.cat([fit.inputs(c.points) for c in clouds])
    given = [c.targets for c in clouds if c.targets is not None]
    return fit.unknowns.harden(soft), torch.cat(given) if given else None


def spread_of_restarts(
    setting: Setting,
    inputs: Sequence[Tensor],
    scores: Sequence[Tensor],
    residuals: Sequence[float],
) -> float | None:
    """Return how well restarts that fit equally agree on the examples, in [−1, 1].

    Of the candidates that explain more than the median one, the mean over pairs of
    restarts of the correlation with the nearest candidate of the other; 1 if all find
    the same. None unless two restarts fit equally well.
    """
    least = min(residuals, default=0.0)
    alike = [i for i, r in enumerate(residuals) if r <= _EQUAL * least]
    if len(alike) < 2:
        return None
    centre = 0 if setting.centre is None else setting.centre
    found = []
    for i in alike:
        strong = inputs[i][scores[i] >= scores[i].median()] - centre
        for j in alike:
            if i != j:
                near = correlations(strong, inputs[j] - centre).max(dim=1).values
                found.append(float(near.mean()))
    return sum(found) / len(found)


def choose(problem: Problem, pool: Pool) -> tuple[Tensor, Tensor | None]:
    """Return the n best candidates; with known labels, the best of every class.

    Args:
        problem: batch size, and labels if they are known.
        pool: merged candidates, the best first.
    """
    count: int = problem.require(Fact.BATCH_SIZE)
    if problem.targets is UNKNOWN or pool.targets is None:
        rows = _filled(list(range(len(pool.inputs))), count)
        return pool.inputs[rows], None if pool.targets is None else pool.targets[rows]
    classes = classes_of(problem.targets)
    rows = []
    for label in torch.unique(classes).tolist():
        own = (pool.targets == label).nonzero().flatten().tolist()
        rows += _filled(own, int((classes == label).sum()))
    return pool.inputs[rows], pool.targets[rows]


def _filled(rows: list[int], count: int) -> list[int]:
    """Return the first rows, repeated where there are too few."""
    return [rows[i % len(rows)] for i in range(count)]


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
