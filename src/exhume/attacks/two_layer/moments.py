"""Empirical Stein moments of a gradient, in a space of a few dimensions.

u_j ~ N(0, I) are weights of the neurons in that space; a weight per neuron, or a vector
per neuron, is averaged against Hermite tensors of u_j. Nothing of size d³ is formed,
and nothing of size m k²: cubes are summed over blocks of neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = [
    "first_moment",
    "fourth_from_hidden",
    "fourth_from_output",
    "second_from_hidden",
    "second_moment",
    "symmetric",
    "third_from_hidden",
    "third_moment",
]

_BLOCK = 2**22  # products of coordinates that are held at once, 32 MB


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
