"""More candidates than examples: rank them without the truth, and merge duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = [
    "Candidates",
    "candidate_scores",
    "correlations",
    "merge_duplicates",
    "weighted_mean",
]

# An example without any contrast correlates with nothing.
_FLAT = 1e-12


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates after merging, the highest score first.

    Attributes:
        inputs: x, shape [M, *event].
        scores: the sum of the scores of the members, shape [M].
        members: indices of what was merged into each, the leader first.
    """

    inputs: Tensor
    scores: Tensor
    members: tuple[tuple[int, ...], ...]


@formula(
    r"s_i = \Big\lVert \sum_c a_{ic} \phi_{ic} \Big\rVert_2^2 ="
    r" \sum_{c,c'} a_{ic} \langle \phi_{ic}, \phi_{ic'} \rangle a_{ic'}",
    reference="definition; a_i² K_ii with one output",
)
def candidate_scores(weights: Tensor, blocks: Tensor) -> Tensor:
    """Return the energy that each candidate contributes to the observation, ≥ 0.

    It ranks candidates without the training set: what explains nothing is spurious.

    Args:
        weights: a, shape [M, C], one column per output (or kernel).
        blocks: ⟨φ_ic, φ_ic'⟩ of each candidate with itself, shape [M, C, C].

    Returns:
        s, shape [M], in squared units of the observation.
    """
    return torch.einsum("ic,icd,id->i", weights, blocks, weights)


@formula(
    r"\mathrm{NCC}_{ij} = \frac{\langle x_i - \bar x_i, z_j - \bar z_j \rangle}"
    r"{\lVert x_i - \bar x_i \rVert_2 \lVert z_j - \bar z_j \rVert_2}",
    reference="normalised cross-correlation (Pearson), definition",
)
def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation over the coordinates of all pairs of examples.

    Natural images share their mean image, which alone correlates them: subtract a
    common centre first.

    Args:
        first: x, shape [M, *event].
        second: z, shape [N, *event].

    Returns:
        shape [M, N], in [−1, 1]; 0 for an example without contrast.
    """
    return _standardised(first) @ _standardised(second).T


def _standardised(inputs: Tensor) -> Tensor:
    rows = inputs.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(lengths > _FLAT, rows / lengths.clamp_min(_FLAT), 0)


def merge_duplicates(
    inputs: Tensor,
    scores: Tensor,
    *,
    centre: Tensor | None = None,
    threshold: float = 0.9,
) -> Candidates:
    """Merge candidates that show the same example, from the highest score down.

    The best of those that are left leads; all that correlate with it above the
    threshold join, and their mean, weighted by the scores, stands for them.

    Args:
        inputs: x, shape [M, *event].
        scores: s ≥ 0, shape [M].
        centre: common to all examples, shape [*event]; subtracted before correlating.
        threshold: correlation from which two candidates are one.

    References:
        Oz et al. (2024), who cluster candidates to choose without the training set.
    """
    moved = inputs if centre is None else inputs - centre
    alike = correlations(moved, moved)
    left = scores.argsort(descending=True, stable=True).tolist()
    groups: list[tuple[int, ...]] = []
    while left:
        leader = left[0]
        joined = [i for i in left if i == leader or float(alike[leader, i]) > threshold]
        groups.append(tuple(joined))
        left = [i for i in left if i not in joined]
    means = [weighted_mean(inputs, scores, group) for group in groups]
    sums = torch.stack([scores[list(group)].sum() for group in groups])
    order = sums.argsort(descending=True, stable=True)
    return Candidates(
        torch.stack(means)[order],
        sums[order],
        tuple(groups[i] for i in order.tolist()),
    )


def weighted_mean(rows: Tensor, scores: Tensor, group: tuple[int, ...]) -> Tensor:
    """Return Σ s_i r_i / Σ s_i over a group of rows; the first one where all s_i ≤ 0.

    Args:
        rows: r, shape [M, ...].
        scores: s, shape [M].
        group: indices, the leader first.
    """
    members = list(group)
    weights = scores[members].clamp_min(0)
    total = weights.sum()
    if not total > 0:
        return rows[members[0]]
    share = (weights / total).reshape(-1, *[1] * (rows.dim() - 1))
    return (share * rows[members]).sum(dim=0)
