"""Candidates for the directions of a batch: found, polished, and cross-checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.attacks.two_layer.decomposition import symmetric_cubes
from exhume.attacks.two_layer.fit import Fitted, Neurons, fit_inputs, polished
from exhume.attacks.two_layer.moments import contracted_tensors, principal_axes
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
_BESIDE = 0.5  # how far from an estimate of norm 1 a start beside it is
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


def agreement(
    best: Candidate,
    fitted: Fitted,
    find: Callable[[Neurons], Iterator[Tensor]],
    norm: float | None,
    steps: int,
    key: int,
) -> Tensor:
    """Make the estimate again from either half of the neurons, and compare directions.

    An estimate that explains a gradient without noise need not be found again: both
    halves then start beside it as well, and tell whether they are led back.

    Args:
        best: the neurons, in their subspace.
        fitted: the estimate, whose order is that of the result.
        find: candidates for directions from some neurons.
        norm: ‖x_i‖ if it is the same and known.
        steps: Gauss–Newton steps that led to the estimate.
        key: randomness of the starts.

    Returns:
        |cos| between the halves for every input, lowered by the gap of the span, [B].
    """
    wanted = _columns(fitted.inputs)
    if len(best.neurons.points) < 2:
        return torch.zeros(wanted.shape[1], dtype=torch.float64)
    found, source = [], generator(key, "agreement")
    explained = fitted.misfit < _EXPLAINED and best.space.gap >= _NOISELESS
    for which in (0, 1):
        half = best.neurons.half(which)
        axes = max(
            (_in_order(axes, wanted) for axes in find(half)),
            key=lambda axes: float((axes * wanted).sum(dim=0).abs().sum()),
        )
        if steps > 0 and half.rows is not None:
            starts = [axes]
            if explained:
                draw = torch.randn(wanted.shape, generator=source, dtype=torch.float64)
                starts.append(_columns((wanted + _BESIDE * _columns(draw.T)).T))
            ends = [polished(half, fit_inputs(half, q, norm), steps) for q in starts]
            again = min(ends, key=lambda end: end.misfit)
            axes = _in_order(_columns(again.inputs), wanted)
        found.append(axes)
    likeness = (found[0] * found[1]).sum(dim=0).abs().clamp(max=1.0)
    return likeness * span_confidence(best.space.gap)


def _columns(inputs: Tensor) -> Tensor:
    """Return unit columns along inputs [B, k]."""
    return inputs.T / inputs.norm(dim=1).clamp_min(torch.finfo(inputs.dtype).tiny)


def _in_order(axes: Tensor, wanted: Tensor) -> Tensor:
    """Return unit columns in the order that is nearest to that of others."""
    from scipy.optimize import linear_sum_assignment

    order = linear_sum_assignment(-(wanted.T @ axes).abs().numpy())[1]
    return axes[:, order]


@formula(
    r"\cos \angle \approx \sqrt{1 - (s_{B+1} / s_B)^2}",
    reference="ours, after Wedin 1972: how much of the span noise has left",
)
def span_confidence(gap: float) -> float:
    """Return how far a span with a gap s_B / s_{B+1} ≥ 1 can be trusted, 0 to 1."""
    return max(0.0, 1 - gap**-2) ** 0.5
