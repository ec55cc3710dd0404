"""Empirical Stein moments of a gradient, in a space of a few dimensions.

u_j ~ N(0, I) are weights of the neurons in that space; a weight per neuron, or a vector
per neuron, is averaged against Hermite tensors of u_j. Nothing of size d³ is formed,
and nothing of size m k²: cubes are summed over blocks of neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from exhume.attacks.two_layer.fit import Neurons
from exhume.formula import formula

__all__ = [
    "channel_weights",
    "contracted_tensors",
    "first_moment",
    "fourth_from_hidden",
    "fourth_from_output",
    "principal_axes",
    "second_from_hidden",
    "second_moment",
    "symmetric",
    "third_from_hidden",
    "third_moment",
]

_BLOCK = 2**22  # products of coordinates that are held at once, 32 MB
_ZERO = 1e-3  # share of the larger of c₃ and c₄ below which an order shows nothing


def symmetric(vector: Tensor, matrix: Tensor) -> Tensor:
    """Return sym₃(v ⊗ A)_{ijk} = v_i A_jk + v_j A_ik + v_k A_ij for symmetric A."""
    one = torch.einsum("i,jk->ijk", vector, matrix)
    return one + one.permute(1, 0, 2) + one.permute(1, 2, 0)


@formula(
    r"\tfrac1m \textstyle\sum_j g_j u_j \to \sum_i r_i c_1 x_i",
    reference="Wang, Lee and Lei (AISTATS 2023), section 3, with Stein's lemma",
)
def first_moment(weights: Tensor, points: Tensor) -> Tensor:
    """Average g_j He₁(u_j).

    Args:
        weights: g, shape [m].
        points: u, shape [m, k].

    Returns:
        shape [k].
    """
    return points.T @ weights / len(points)


@formula(
    r"\tfrac1m \textstyle\sum_j g_j (u_j u_j^\top - I) \to "
    r"\sum_i r_i c_2 x_i x_i^\top",
    reference="Wang, Lee and Lei (AISTATS 2023), section 3",
)
def second_moment(weights: Tensor, points: Tensor) -> Tensor:
    """Average g_j He₂(u_j).

    Args:
        weights: g, shape [m].
        points: u, shape [m, k].

    Returns:
        shape [k, k], symmetric.
    """
    squares = (points * weights.unsqueeze(1)).T @ points / len(points)
    return squares - weights.mean() * torch.eye(points.shape[1]).to(points)


@formula(
    r"\tfrac1m \textstyle\sum_j g_j He_3(u_j) \to \sum_i r_i c_3 x_i^{\otimes 3}",
    reference="Wang, Lee and Lei (AISTATS 2023), section 3",
)
def third_moment(weights: Tensor, points: Tensor) -> Tensor:
    """Average g_j He₃(u_j).

    Args:
        weights: g, shape [m].
        points: u, shape [m, k].

    Returns:
        shape [k, k, k], symmetric.
    """
    k = points.shape[1]
    total = points.new_zeros(k, k * k)
    rows = max(1, _BLOCK // k**2)
    for part, share in zip(points.split(rows), weights.split(rows), strict=True):
        pairs = torch.einsum("ji,jk->jik", part, part).reshape(len(part), -1)
        total += (part * share.unsqueeze(1)).T @ pairs
    cubes = total.reshape(k, k, k) / len(points)
    return cubes - symmetric(first_moment(weights, points), torch.eye(k).to(points))


@formula(
    r"\tfrac{1}{2m} (G^\top U + U^\top G) \to \sum_i r_i c_2 x_i x_i^\top",
    reference="Wang, Lee and Lei (AISTATS 2023), appendix B",
)
def second_from_hidden(rows: Tensor, points: Tensor) -> Tensor:
    """Average G_j ⊗ He₁(u_j), made symmetric.

    Args:
        rows: G, shape [m, k].
        points: u, shape [m, k].
    """
    one = rows.T @ points / len(points)
    return (one + one.T) / 2


@formula(
    r"\mathrm{sym}_3\, \tfrac1m \textstyle\sum_j G_j \otimes He_2(u_j) \to "
    r"\sum_i r_i c_3 x_i^{\otimes 3}",
    reference="Wang, Lee and Lei (AISTATS 2023), appendix B",
)
def third_from_hidden(rows: Tensor, points: Tensor) -> Tensor:
    """Average G_j ⊗ He₂(u_j) over the three places of G.

    Args:
        rows: G, shape [m, k].
        points: u, shape [m, k].
    """
    one = torch.stack([second_moment(column, points) for column in rows.T])
    return (one + one.permute(1, 0, 2) + one.permute(1, 2, 0)) / 3


@formula(
    r"\tfrac1m \textstyle\sum_j g_j He_4(u_j)(\cdot,\cdot,\cdot,b) \to "
    r"\sum_i r_i c_4 (x_i \cdot b)\, x_i^{\otimes 3}",
    reference="Wang, Lee and Lei (AISTATS 2023), remark 4",
)
def fourth_from_output(weights: Tensor, points: Tensor, along: Tensor) -> Tensor:
    """Average g_j He₄(u_j), contracted with a unit vector.

    Args:
        weights: g, shape [m].
        points: u, shape [m, k].
        along: b, shape [k].
    """
    tilted = third_moment(weights * (points @ along), points)
    return tilted - symmetric(along, second_moment(weights, points))


@formula(
    r"\mathrm{sym}_4\, \tfrac1m \textstyle\sum_j G_j \otimes He_3(u_j)"
    r"(\cdot,\cdot,\cdot,b) \to \sum_i r_i c_4 (x_i \cdot b)\, x_i^{\otimes 3}",
    reference="Wang, Lee and Lei (AISTATS 2023), appendix B and remark 4",
)
def fourth_from_hidden(rows: Tensor, points: Tensor, along: Tensor) -> Tensor:
    """Average G_j ⊗ He₃(u_j) over the four places of G, contracted with b.

    Args:
        rows: G, shape [m, k].
        points: u, shape [m, k].
        along: b, shape [k].
    """
    size = points @ along
    parts = []
    for column in rows.T:
        mean = first_moment(column, points)
        cross = torch.outer(mean, along)
        parts.append(second_moment(column * size, points) - cross - cross.T)
    one = torch.stack(parts)
    spread = one + one.permute(1, 0, 2) + one.permute(1, 2, 0)
    return (third_moment(rows @ along, points) + spread) / 4


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
