"""From clouds of candidates to an answer: merged and ranked, truth-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.engine.candidates import correlations, merge_duplicates
from exhume.attacks.weights.descent import Cloud
from exhume.attacks.weights.setting import Setting, classes_of
from exhume.problem.knowledge import UNKNOWN, Fact, Problem

__all__ = [
    "Pool",
    "choose",
    "pool_candidates",
    "raw_candidates",
    "spread_of_restarts",
]

# Correlation from which two candidates show the same example.
_SAME = 0.8
# Restarts fit equally well if their residuals differ by less than this factor.
_EQUAL = 1.5
_TINY = 1e-300


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
