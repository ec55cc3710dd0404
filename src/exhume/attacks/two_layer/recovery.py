"""Recover the inputs of a two-layer network from one gradient, with a guarantee."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from exhume.attacks.two_layer.checks import Weights, inspect_weights
from exhume.attacks.two_layer.contraction import channel_weights
from exhume.attacks.two_layer.fit import Neurons, fit_inputs
from exhume.attacks.two_layer.limits import limits
from exhume.attacks.two_layer.search import (
    Candidate,
    agreement,
    directions,
    polished_best,
)
from exhume.attacks.two_layer.subspace import (
    Subspace,
    moment_subspace,
    row_subspace,
)
from exhume.attacks.two_layer.view import TwoLayerView
from exhume.errors import InvalidInput

__all__ = [
    "Method",
    "Recovered",
    "Source",
    "SubspaceKind",
    "TwoLayerView",
    "recover_inputs",
]

Source = Literal["auto", "hidden", "output"]
SubspaceKind = Literal["auto", "svd", "moments"]
Method = Literal["tensor", "pca"]

_CLEAR_GAP = 2.0  # singular gap above which moments cannot give a better subspace
_CHANNELS = 4  # output units that are tried, the largest first


@dataclass(frozen=True, eq=False)
class Recovered:
    """Estimates of the inputs of a two-layer network.

    Attributes:
        inputs: x̂, shape [B, d], with the estimated norms and signs.
        directions: unit vectors along them, shape [B, d].
        residuals: r̂_ic = ∂L/∂f_c, shape [B, K].
        confidence: |cos| between the estimates from two halves of the neurons, [B].
        sign_known: whether x and −x differ in what is observed, shape [B].
        norm_known: whether norms were read off the gradient; 1 is assumed otherwise.
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
    norm = norm if weights.root is None else None  # it is one of natural coordinates
    find = partial(directions, method=method, restarts=restarts, key=key)
    found: list[Candidate] = []
    for space in _subspaces(view, batch_size, averaged, subspace, weights, key):
        neurons, lost = _neurons(view, space, weights)
        for axes in find(neurons, averaged, _channels(view)):
            fitted = fit_inputs(neurons, axes, norm)
            error = math.hypot(fitted.misfit * lost[0], lost[1])
            found.append(Candidate(error, fitted, space, neurons, axes))
    best = min(found, key=lambda one: one.error)
    again = partial(find, source=averaged, channels=_channels(view))
    confidence = agreement(best, again)
    fitted = polished_best(best, found, norm, polish, starts, key)
    inputs = weights.natural(fitted.inputs @ best.space.basis.T)
    return Recovered(
        inputs=inputs,
        directions=inputs / inputs.norm(dim=1, keepdim=True),
        residuals=fitted.residuals,
        confidence=confidence,
        sign_known=fitted.sign_known,
        norm_known=fitted.norm_known or norm is not None,
        misfit=fitted.misfit,
        subspace=best.space,
        source=averaged,
        notes=(*weights.notes, *limits(view, best.space, fitted, confidence, norm)),
    )


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


def _subspaces(
    view: TwoLayerView,
    batch_size: int | None,
    source: str,
    wanted: SubspaceKind,
    weights: Weights,
    key: int,
) -> Iterator[Subspace]:
    if wanted not in ("auto", "svd", "moments"):
        msg = f"subspace is {wanted!r}; choose 'auto', 'svd' or 'moments'"
        raise InvalidInput(msg)
    first = None
    if view.hidden_gradient is not None and wanted != "moments":
        first = row_subspace(view, batch_size, key)
        if not float(first.values[0]) > 0:
            msg = (
                "the gradient of the hidden weights is zero (equal rows of the output "
                "layer make it vanish, for softmax residuals sum to 0); use "
                "source='output'"
            )
            raise InvalidInput(msg)
        yield first
        batch_size = first.basis.shape[1]
    elif wanted == "svd":
        msg = "subspace='svd' needs the gradient of the hidden weights; use 'moments'"
        raise InvalidInput(msg)
    if batch_size is None:
        msg = "without the hidden gradient the batch size must be given"
        raise InvalidInput(msg)
    if first is None or (wanted == "auto" and first.gap < _CLEAR_GAP):
        for channel in _channels(view):
            gradient = view.output_gradient
            shown = None if gradient is None else gradient[channel]
            yield moment_subspace(
                weights.centred(view),
                channel_weights(view.output[channel], shown, source),
                batch_size,
                source=source,
                scale=weights.scale,
            )


def _channels(view: TwoLayerView) -> list[int]:
    """Return the output units with the largest gradient, a few."""
    classes = view.output.shape[0]
    if view.output_gradient is None:
        return list(range(min(classes, _CHANNELS)))
    size = view.output_gradient.double().square().sum(dim=1)
    return size.argsort(descending=True)[:_CHANNELS].tolist()


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
