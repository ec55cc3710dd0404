"""Recover the inputs of a two-layer network from one gradient, with a guarantee."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from exhume.attacks.two_layer.activation import NORMS
from exhume.attacks.two_layer.checks import Weights, inspect_weights
from exhume.attacks.two_layer.fit import Fitted, Neurons, fit_inputs
from exhume.attacks.two_layer.search import (
    Candidate,
    agreement,
    directions,
    polished_best,
)
from exhume.attacks.two_layer.subspace import (
    Subspace,
    SubspaceKind,
    channels,
    subspaces,
)
from exhume.attacks.two_layer.view import TwoLayerView, blind
from exhume.errors import InvalidInput

__all__ = [
    "Method",
    "Recovered",
    "Source",
    "SubspaceKind",
    "TwoLayerView",
    "limits",
    "recover_inputs",
    "within_reach",
]

Source = Literal["auto", "hidden", "output"]
Method = Literal["tensor", "pca"]
_PARALLEL = 10.0  # condition of the span from which inputs count as nearly parallel
_LOST = 1.1  # gap below which the span is noise
_EXPLAINED = 1e-4  # misfit below which least squares found all there is
_NOISELESS = 1e3  # gap of a gradient to which nothing was added
_EXACT = 1e-6  # misfit that is rounding of single precision
_END = 1.02  # how near to an end of the norms that are searched counts as there
_AGREE = 0.9  # |cos| between halves of the neurons below which a direction is doubted


@dataclass(frozen=True, eq=False)
class Recovered:
    """Estimates of the inputs of a two-layer network.

    Attributes:
        inputs: x̂, shape [B, d], with the estimated norms and signs.
        directions: unit vectors along them, shape [B, d].
        residuals: r̂_ic = ∂L/∂f_c, shape [B, K].
        confidence: |cos| between the estimates from two halves of the neurons, [B];
            polished as well if this one is.
        sign_known: whether x and −x differ in what is observed, shape [B].
        norm_known: whether norms were read off the gradient; 1 is assumed otherwise.
        reached: whether an input lies where the activation bends, so that it can be
            told from others; its confidence is 0 otherwise, shape [B].
        misfit: share of the observed gradient that the estimate does not explain.
        subspace: what the answer was found in.
        source: ``hidden`` or ``output``, the gradient that was averaged.
        notes: limits of identifiability that were met, in sentences.
    """

    inputs: Tensor
    directions: Tensor
    residuals: Tensor
    confidence: Tensor
    sign_known: Tensor
    norm_known: bool
    reached: Tensor
    misfit: float
    subspace: Subspace
    source: str
    notes: tuple[str, ...]


def recover_inputs(
    view: TwoLayerView,
    batch_size: int | None = None,
    *,
    source: Source = "auto",
    subspace: SubspaceKind = "auto",
    method: Method = "tensor",
    norm: float | None = None,
    restarts: int = 100,
    polish: int = 0,
    starts: int = 30,
    key: int = 0,
) -> Recovered:
    """Find subspace, directions, then norms, signs and residuals.

    Args:
        view: the weights and the gradient.
        batch_size: B; None counts what stands out of the noise.
        source: the gradient to average; ``auto`` takes the hidden one if there is one.
        subspace: ``svd`` of the hidden gradient, ``moments``, or the better one.
        method: ``tensor``: moments of order 3 or 4; ``pca``: eigenvectors of order 2.
        norm: ‖x_i‖ if it is the same and known; None searches it.
        restarts: pairs of slices in the decomposition.
        polish: Gauss–Newton steps at most; 0 gives the estimator of the theorem.
        starts: random ones at most, polished while something is left to explain.
        key: randomness of sketches and restarts.

    Raises:
        InvalidInput: the source is not released or zero, or B exceeds the dimension.
    """
    averaged = _source(view, source)
    view = _check(view, batch_size, averaged)
    weights = inspect_weights(view)
    view = weights.whitened(view)
    given, norm = norm, norm if weights.root is None else None  # it is a natural one
    find = partial(directions, source=averaged, channels=channels(view, averaged))
    find = partial(find, method=method, restarts=restarts, key=key)
    spaces = subspaces(view, batch_size, averaged, subspace, weights, key)
    found = list(_candidates(view, spaces, weights, find, norm))
    best = min(found, key=lambda one: one.error)
    fitted = polished_best(best, found, norm, polish, starts, key)
    confidence = agreement(best, fitted, find, norm, polish, key)
    reached = within_reach(best.neurons, fitted, norm)
    told = limits(view, best.space, fitted, confidence, given, reached)
    inputs = weights.natural(fitted.inputs @ best.space.basis.T)
    length = inputs.norm(dim=1, keepdim=True)
    factor = length / (given or 1.0) if best.neurons.homogeneous else 1.0
    return Recovered(
        inputs=inputs / factor,
        directions=inputs / length,
        residuals=fitted.residuals * factor,
        confidence=confidence * reached,
        sign_known=fitted.sign_known,
        norm_known=fitted.norm_known or given is not None,
        reached=reached,
        misfit=fitted.misfit,
        subspace=best.space,
        source=averaged,
        notes=(*weights.notes, *told),
    )


def _candidates(
    view: TwoLayerView,
    spaces: Iterable[Subspace],
    weights: Weights,
    find: Callable[[Neurons], Iterator[Tensor]],
    norm: float | None,
) -> Iterator[Candidate]:
    """Yield an answer for every subspace and every way to find directions in it."""
    for space in spaces:
        neurons, lost = _neurons(view, space, weights)
        for axes in find(neurons):
            fitted = fit_inputs(neurons, axes, norm)
            error = math.hypot(fitted.misfit * lost[0], lost[1])
            yield Candidate(error, fitted, space, neurons, axes)


def _check(view: TwoLayerView, batch_size: int | None, source: str) -> TwoLayerView:
    """Raise unless there is something to invert; drop a hidden gradient of zero."""
    most = min(view.dimension, view.width)
    if batch_size is not None and not 1 <= batch_size <= most:
        msg = (
            f"the batch size is {batch_size}, the inputs have {view.dimension} "
            f"dimensions and the network {view.width} neurons; at most {most} examples "
            f"can be independent"
        )
        raise InvalidInput(msg)
    if source == "hidden" and not bool(view.output.any()):
        msg = (
            "the output weights are zero, so that the hidden gradient shows nothing; "
            "use source='output'"
        )
        raise InvalidInput(msg)
    shown = view.output_gradient
    if source == "output" and shown is not None and not bool(shown.any()):
        msg = "the gradient of the output weights is zero: there is nothing to invert"
        raise InvalidInput(msg)
    hidden = view.hidden_gradient
    if source == "output" and hidden is not None and _norm(view) == 0:
        return replace(view, hidden_gradient=None)
    return view


def _source(view: TwoLayerView, source: Source) -> str:
    wanted: str = source
    if source == "auto":
        wanted = "output" if view.hidden_gradient is None else "hidden"
    missing = {"hidden": view.hidden_gradient, "output": view.output_gradient}
    if wanted not in missing:
        msg = f"source is {wanted!r}; choose 'auto', 'hidden' or 'output'"
        raise InvalidInput(msg)
    if missing[wanted] is None:
        msg = f"the gradient of the {wanted} weights is not released; take the other"
        raise InvalidInput(msg)
    return wanted


def _neurons(
    view: TwoLayerView, space: Subspace, weights: Weights
) -> tuple[Neurons, tuple[float, float]]:
    """Project weights and gradient; also the shares inside and outside of the space."""
    rows, inside, total, mean = None, 1.0, 1.0, weights.mean
    if view.hidden_gradient is not None:
        rows = space.rows
        if rows is None:
            rows = view.times(view.hidden_gradient, space.basis)
        inside = float(rows.norm())
        # All singular values, or all above rounding, hold the norm of the gradient.
        total = float(space.values.norm()) if space.kind == "svd" else _norm(view)
    neurons = Neurons(
        points=view.times(view.weight, space.basis) / weights.scale,
        heads=view.output.T.double().cpu(),
        rows=rows,
        outputs=None
        if view.output_gradient is None
        else view.output_gradient.T.double().cpu(),
        sigma=view.sigma,
        scale=weights.scale,
        offset=None if view.offset is None else view.offset.double().cpu(),
        mean=None if mean is None else mean @ space.basis / weights.scale,
    )
    outside = math.sqrt(max(0.0, total**2 - inside**2))
    return neurons, (inside / total, outside / total)


def _norm(view: TwoLayerView) -> float:
    assert view.hidden_gradient is not None
    squares = (
        float(view.hidden_gradient[block].square().sum()) for block in view.chunks()
    )
    return math.sqrt(sum(squares))


def with_sign(found: Recovered, signs: Tensor) -> Recovered:
    """Return the estimate with inputs and residuals turned by ±1, shape [B].

    For an odd activation this leaves the hidden gradient as it is.
    """
    side = signs.to(found.inputs).unsqueeze(1)
    return replace(
        found,
        inputs=found.inputs * side,
        directions=found.directions * side,
        residuals=found.residuals * side,
    )


def within_reach(neurons: Neurons, fitted: Fitted, norm: float | None) -> Tensor:
    """Return which inputs lie where the activation tells their norm, shape [B].

    Near 0 every smooth activation is a line and far from it most are constant; an
    estimate at an end of the norms that were searched is that of neither.

    Args:
        neurons: in the coordinates of the estimate.
        fitted: the estimate.
        norm: ‖x_i‖ if it is the same and known.
    """
    size = neurons.scale * fitted.inputs.norm(dim=1)
    inside = (size > NORMS[0] * _END) & (size < NORMS[1] / _END)
    told = norm is not None or neurons.homogeneous or fitted.misfit < _EXACT
    return inside | told


def limits(
    view: TwoLayerView,
    space: Subspace,
    fitted: Fitted,
    confidence: Tensor,
    norm: float | None,
    reached: Tensor,
) -> Iterator[str]:
    """Say what cannot be known, or is not to be trusted."""
    batch, sigma = space.basis.shape[1], view.sigma
    if view.output_gradient is None and blind(view.output.T):
        yield (
            "The weights of the output units are not independent, and the gradient of "
            "these weights is not released: residuals and labels are not identified."
        )
    if view.width < 2 * view.dimension:
        yield (
            f"The network is narrow: {view.width} neurons for {view.dimension} "
            f"dimensions; the theory needs at least twice as many."
        )
    if batch > 1 and space.condition > _PARALLEL:
        yield (
            f"The inputs are nearly parallel or of very different weight (the span has "
            f"condition {space.condition:.0f}); errors grow with it."
        )
    if space.gap < _LOST:
        yield (
            f"The span of the batch does not stand out of the noise (gap "
            f"{space.gap:.2f}): the estimates may mean nothing."
        )
    if not bool(fitted.sign_known.all()):
        why = "is odd up to a constant" if sigma.odd else "hardly tells the signs apart"
        yield (
            f"The activation {sigma.name!r} {why}, so that (x, r) and (−x, −r) give "
            f"the same gradient: signs are not identified by it."
        )
    if sigma.homogeneous and view.offset is None and norm is None:
        yield (
            f"With {sigma.name!r} only the product of residual and norm shows; norms "
            f"are set to 1."
        )
    if not bool(reached.all()):
        yield (
            f"The activation {sigma.name!r} is nearly a polynomial of low degree, or a "
            f"constant, where the inputs fall: {int((~reached).sum())} of {batch} are "
            f"not reliable, in norm or direction."
        )
    doubted = int((confidence < _AGREE).sum())
    if doubted:
        told = "they are not reliable"
        if fitted.misfit < _EXPLAINED and space.gap > _NOISELESS:
            told = f"yet the gradient is explained up to {fitted.misfit:.0e}"
        yield (
            f"{doubted} of {batch} directions differ between two halves of the neurons "
            f"(|cos| below {_AGREE}): {told}."
        )
