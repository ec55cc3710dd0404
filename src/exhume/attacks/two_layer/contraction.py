"""The tensor of a gradient in the span of the batch, by source and order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from exhume.attacks.two_layer.fit import Neurons
from exhume.attacks.two_layer.moments import (
    first_moment,
    fourth_from_hidden,
    fourth_from_output,
    second_from_hidden,
    second_moment,
    third_from_hidden,
    third_moment,
)

__all__ = ["channel_weights", "contracted_tensors", "principal_axes"]

_ZERO = 1e-3  # share of the larger of c₃ and c₄ below which an order shows nothing


def contracted_tensors(
    neurons: Neurons, source: str, channels: Sequence[int]
) -> Iterator[Tensor]:
    """Yield T(V, V, V) for every order that the activation has, and output unit.

    Args:
        neurons: in the span V.
        source: ``hidden`` or ``output``.
        channels: output units.
    """
    sigma = neurons.sigma
    sizes = {order: abs(sigma.moment(order)) for order in (3, 4)}
    # At 0 an order may show nothing, and beside an offset or a mean it does.
    least = -1.0 if neurons.shifted else _ZERO * max(sizes.values())
    orders = [o for o, size in sizes.items() if size > least]
    for channel in channels:
        weights = _weights(neurons, channel, source)
        for order in orders:
            yield _tensor(neurons, weights, source, order)


def principal_axes(
    neurons: Neurons, source: str, channels: Sequence[int]
) -> Iterator[Tensor]:
    """Yield eigenvectors of the second moment in the span, for every output unit.

    They are the inputs where these are orthogonal and their residuals differ; otherwise
    the span is right and the axes are mixtures. Where c₂ = 0 the third moment,
    contracted with the first, takes its place.

    Args:
        neurons: in the span V.
        source: ``hidden`` or ``output``.
        channels: output units.
    """
    even = abs(neurons.sigma.moment(2)) > _ZERO
    for channel in channels:
        weights = _weights(neurons, channel, source)
        if not even:
            tensor = _tensor(neurons, weights, source, 3)
            moment = tensor @ _along(_first(neurons, weights, source))
        elif source == "output":
            moment = second_moment(weights, neurons.centred)
        else:
            assert neurons.rows is not None
            rows = neurons.rows * weights.unsqueeze(1)
            moment = second_from_hidden(rows, neurons.centred)
        yield torch.linalg.eigh((moment + moment.T) / 2)[1]


def _first(neurons: Neurons, weights: Tensor, source: str) -> Tensor:
    if source == "output":
        return first_moment(weights, neurons.centred)
    assert neurons.rows is not None
    return (neurons.rows * weights.unsqueeze(1)).mean(dim=0)


def channel_weights(heads: Tensor, gradient: Tensor | None, source: str) -> Tensor:
    """Return the weight of every neuron for one output unit, shape [m].

    g_j itself, or ω_j = A_cj / E[A_c²], which turns G_j into Σ_i r_ic σ'(…) x_i on
    average over the heads.

    Args:
        heads: A_c, shape [m].
        gradient: g_c = ∂L/∂A_c, shape [m]; None if it is not released.
        source: ``hidden`` or ``output``.
    """
    if source == "output":
        assert gradient is not None
        return gradient.double()
    heads = heads.double()
    return heads / heads.square().mean()


def _weights(neurons: Neurons, channel: int, source: str) -> Tensor:
    shown = None if neurons.outputs is None else neurons.outputs[:, channel]
    return channel_weights(neurons.heads[:, channel], shown, source)


def _tensor(neurons: Neurons, weights: Tensor, source: str, order: int) -> Tensor:
    points = neurons.centred
    if source == "output":
        if order == 3:
            return third_moment(weights, points)
        along = _along(_first(neurons, weights, source))
        return fourth_from_output(weights, points, along)
    assert neurons.rows is not None
    rows = neurons.rows * weights.unsqueeze(1)
    if order == 3:
        return third_from_hidden(rows, points)
    return fourth_from_hidden(rows, points, _along(_first(neurons, weights, source)))


def _along(moment: Tensor) -> Tensor:
    """Return the direction of a first moment, which has parts along every input."""
    length = moment.norm()
    if not bool(length > 0):
        return torch.full_like(moment, len(moment) ** -0.5)
    return moment / length
