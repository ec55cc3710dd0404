"""Candidates for the directions of a batch: found, polished, and cross-checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.two_layer.contraction import contracted_tensors, principal_axes
from exhume.attacks.two_layer.decomposition import symmetric_cubes
from exhume.attacks.two_layer.fit import Fitted, Neurons, fit_inputs
from exhume.attacks.two_layer.polish import polished
from exhume.attacks.two_layer.subspace import Subspace
from exhume.formula import formula
from exhume.keys import generator

__all__ = [
    "Candidate",
    "agreement",
    "directions",
    "polished_best",
    "span_confidence",
]

_POLISHED = 3  # best answers that are polished
_FEW = 2048  # neurons on which random starts are polished first
_NOISELESS = 1e3  # singular gap of a gradient to which nothing was added
_EXPLAINED = 1e-4
_EXPLAINED_KINKED = 0.05  # where a kink keeps least squares from the last digits


@dataclass(frozen=True, eq=False)
class Candidate:
    """An answer, and the share of the whole gradient that it leaves unexplained."""

    error: float
    fitted: Fitted
    space: Subspace
    neurons: Neurons
    directions: Tensor


def directions(
    neurons: Neurons,
    source: str,
    channels: Sequence[int],
    *,
    method: str,
    restarts: int,
    key: int,
) -> Iterator[Tensor]:
    """Yield candidates for the directions of all inputs, as unit columns."""
    if method == "pca":
        yield from principal_axes(neurons, source, channels)
        return
    for tensor in contracted_tensors(neurons, source, channels):
        yield symmetric_cubes(tensor, key, restarts).directions


def polished_best(
    best: Candidate,
    found: list[Candidate],
    norm: float | None,
    steps: int,
    starts: int,
    key: int,
) -> Fitted:
    """Polish the best answers in one subspace, and random ones while there is a gap.

    Without noise an exact explanation exists, so that other starts are worth it.
    """
    same = [one for one in found if one.space is best.space]
    same.sort(key=lambda one: one.error)
    fitted = best.fitted
    kinked = best.neurons.sigma.homogeneous
    enough = _EXPLAINED_KINKED if kinked else _EXPLAINED
    for one in same[:_POLISHED]:
        if fitted.misfit < enough and one is not same[0]:
            break
        fitted = _better(fitted, polished(one.neurons, one.fitted, steps))
    if steps == 0 or best.neurons.rows is None or best.space.gap < _NOISELESS:
        return fitted
    count = len(best.fitted.inputs)
    source = generator(key, "random-starts")
    few = best.neurons.some(_FEW)
    for _ in range(starts if count > 1 else 0):
        if fitted.misfit < enough:
            break
        draw = torch.randn((count, count), generator=source, dtype=torch.float64)
        start = fit_inputs(few, draw / draw.norm(dim=0), norm)
        rough = polished(few, start, steps)
        if rough.misfit < fitted.misfit:
            fitted = _better(fitted, polished(best.neurons, rough, steps))
    return fitted


def _better(one: Fitted, other: Fitted) -> Fitted:
    return other if other.misfit < one.misfit else one


def agreement(best: Candidate, find: Callable[[Neurons], Iterator[Tensor]]) -> Tensor:
    """Estimate directions from two halves of the neurons, and compare them."""
    from scipy.optimize import linear_sum_assignment

    found = []
    for which in (0, 1):
        closest = None
        for axes in find(best.neurons.half(which)):
            likeness = (best.directions.T @ axes).abs()
            order = linear_sum_assignment(-likeness.numpy())[1]
            if closest is None or float(likeness.sum()) > closest[0]:
                closest = (float(likeness.sum()), axes[:, order])
        assert closest is not None
        found.append(closest[1])
    likeness = (found[0] * found[1]).sum(dim=0).abs().clamp(max=1.0)
    return likeness * span_confidence(best.space.gap)


@formula(
    r"\cos \angle \approx \sqrt{1 - (s_{B+1} / s_B)^2}",
    reference="ours, after Wedin 1972: how much of the span noise has left",
)
def span_confidence(gap: float) -> float:
    """Return how far a span with a gap s_B / s_{B+1} ≥ 1 can be trusted, 0 to 1."""
    return max(0.0, 1 - gap**-2) ** 0.5
