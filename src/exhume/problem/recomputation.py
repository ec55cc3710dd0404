"""Recompute a gradient from a client's own batch and explain any difference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from exhume.errors import InvalidInput
from exhume.problem.batch import Batch
from exhume.problem.finding import Finding
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.law import Law
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from exhume.problem.tree import Tree, detached, dot, norm, scale, subtract

__all__ = ["in_other_mode", "recomputation_findings"]

# Relative difference that rounding in float32 on other hardware may leave.
_ROUNDING = 1e-3
# Noise may exceed its expected norm by this factor before it counts as a difference.
_NOISE_SLACK = 1.5


@dataclass(frozen=True, eq=False)
class _Fit:
    """O ≈ factor · F': how well one explanation fits.

    Attributes:
        words: what is different from the declared setting, or "".
        factor: least-squares factor.
        cosine: of O and F'.
        exact: F' itself fits, with factor 1.
        scaled: factor · F' fits.
    """

    words: str
    factor: float
    cosine: float
    exact: bool
    scaled: bool


def recomputation_findings(problem: Problem, own: Batch) -> list[Finding]:
    """Compare the observation with the gradient of the client's own batch.

    Tries the usual explanations of a difference: a factor (sum instead of mean, a
    scaled loss, a learning rate), the sign, the other mode, a missing normalisation,
    pixels in 0–255, and swapped colour channels.

    Args:
        problem: the observation with model and facts; not knowing the law counts as
            no defense.
        own: the private batch.

    Returns:
        one note if it fits, one error that explains the mismatch, or one warning or
        error (if no defense can be the reason) that finds no explanation.
    """
    law = Law() if problem.law is UNKNOWN else problem.law
    task: Task = problem.require(Fact.WEIGHTS)
    observed = {n: t.to(task.dtype) for n, t in problem.observed.items()}
    recomputed = [
        (words, _forward(problem, variant, batch, law))
        for words, variant, batch in _variants(task, own)
    ]
    slack = _NOISE_SLACK * _noise_norm(law, observed)
    fits = [_fit(words, observed, tree, slack) for words, tree in recomputed]
    first = fits[0]
    if first.exact:
        gap = _relative(observed, recomputed[0][1])
        text = f"the recomputed gradient agrees (relative difference {gap:.1e})"
        return [Finding("note", text)]
    explained = [f for f in fits if f.exact] + [f for f in fits if f.scaled]
    if explained:
        return [Finding("error", _explain(explained[0], len(own)))]
    severity = "warning" if problem.law is UNKNOWN else "error"
    return [Finding(severity, _unexplained(observed, recomputed[0][1], first))]


def _forward(problem: Problem, task: Task, batch: Batch, law: Law) -> Tree:
    model = problem.require(Fact.LOCAL_SCHEDULE)
    exact = model.forward(task, Candidate(batch.inputs.to(task.dtype), batch.targets))
    return law.mean(detached(exact))


def _variants(task: Task, own: Batch) -> Iterator[tuple[str, Task, Batch]]:
    yield "", task, own
    other = in_other_mode(task, len(own))
    if other is not None:
        yield f"with the model in {other.mode} mode", other, own
    if task.normalise is not None:
        plain = replace(task, normalise=None)
        yield "without the declared normalisation of inputs", plain, own
    free = replace(own.spec, low=None, high=None)
    bytes_ = Batch(own.inputs * 255, own.targets, free)
    yield "with inputs in 0–255 instead of the declared range", task, bytes_
    if own.spec.grid is not None and own.spec.grid[0] == 3:
        swapped = Batch(own.inputs.flip(1), own.targets, own.spec)
        yield "with the colour channels in the order blue, green, red", task, swapped


def in_other_mode(task: Task, batch_size: int) -> Task | None:
    """Return the task in the other mode; None if that is not defined.

    It is not without BatchNorm (both modes agree), with dropout, or for one example
    in a ``BatchNorm1d``, which has no variance.
    """
    model = copy.deepcopy(task.model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and name in task.running_statistics
    }
    single = any(isinstance(layer, nn.BatchNorm1d) for layer in layers.values())
    if not layers or (single and batch_size == 1):
        return None
    for name, layer in layers.items():
        mean, variance = task.running_statistics[name]
        layer.running_mean, layer.running_var = mean.clone(), variance.clone()
        layer.track_running_stats = True
    other = "train" if task.mode == "eval" else "eval"
    try:
        return Task(model, task.loss, other, task.normalise)
    except InvalidInput:  # dropout
        return None


def _noise_norm(law: Law, like: Tree) -> float:
    total = torch.zeros((), dtype=torch.float64)
    for name, variance in law.variance.items():
        kept = torch.broadcast_to(variance.double(), like[name].shape)
        total = total + (kept * law.mask[name] if name in law.mask else kept).sum()
    return float(total.sqrt())


def _fit(words: str, observed: Tree, tree: Tree, slack: float) -> _Fit:
    tiny = torch.finfo(torch.float64).tiny
    power, size = float(dot(tree, tree)), float(norm(observed))
    product = float(dot(observed, tree))
    factor = product / max(power, tiny)
    room = slack + _ROUNDING * size
    exact = float(norm(subtract(observed, tree))) <= room
    scaled = factor != 0 and (
        float(norm(subtract(observed, scale(factor, tree)))) <= room
    )
    cosine = product / max(size * power**0.5, tiny)
    return _Fit(words, factor, cosine, exact, scaled)


def _relative(observed: Tree, tree: Tree) -> float:
    tiny = torch.finfo(torch.float64).tiny
    return float(norm(subtract(observed, tree))) / max(float(norm(tree)), tiny)


def _explain(fit: _Fit, batch_size: int) -> str:
    where = f" computed {fit.words}" if fit.words else ""
    if fit.exact:
        return f"the update equals the gradient{where}; correct the declared setting"
    why, factor = _why(fit.factor, batch_size), f"{fit.factor:.4g}"
    return (
        f"the update equals {factor} × the gradient{where}: {why}; divide it by "
        f"{factor} (--scale {factor})"
    )


def _why(factor: float, batch_size: int) -> str:
    def near(value: float) -> bool:
        return abs(factor - value) <= 2 * _ROUNDING * abs(value)

    if near(-1):
        return "the sign is flipped"
    if factor < 0:
        return (
            f"it looks like one step of SGD with learning rate {-factor:.4g}, weights "
            f"after minus before"
        )
    if batch_size > 1 and near(batch_size):
        return f"the loss was summed over the {batch_size} examples, not averaged"
    if batch_size > 1 and near(1 / batch_size):
        return f"it was averaged over the {batch_size} examples twice"
    return "the loss or the update was scaled by a constant"


def _unexplained(observed: Tree, tree: Tree, fit: _Fit) -> str:
    differ = [
        name
        for name in tree
        if _relative({name: observed[name]}, {name: tree[name]}) > _ROUNDING
    ]
    shown = ", ".join(differ[:5]) + (", …" if len(differ) > 5 else "")
    return (
        f"the recomputed gradient differs (relative difference "
        f"{_relative(observed, tree):.2g}, cosine {fit.cosine:.3f}, {len(differ)} of "
        f"{len(tree)} tensors: {shown}), and no factor, sign, mode or normalisation "
        f"explains it; look for other weights, other data, or a defense that was not "
        f"declared"
    )
