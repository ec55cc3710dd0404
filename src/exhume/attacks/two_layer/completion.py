"""Fill in the removed entries of a hidden gradient, whose rank is the batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from exhume.formula import formula

__all__ = ["completed", "completed_rows"]

_SWEEPS = 100
_DONE = 1e-12  # relative change of the explained share
_EXPLAINED = 1e-6  # squared share of the kept entries that may be missed
_BLOCK = 4096
_RIDGE = 1e-12


@formula(
    r"\min_{C, V} \| M \circ (G - C V^\top) \|_F^2",
    reference="Jain, Netrapalli and Sanghavi 2013 (alternating minimisation)",
)
def completed(rows: Tensor, kept: Tensor, rank: int) -> Tensor | None:
    """Return the matrix of a given rank that has the kept entries, or None.

    Rows and columns are solved for in turn, each by small normal equations. Where no
    matrix of this rank has these entries (noise was added), filling in would amplify
    what does not fit, and zeros are the better guess.

    Args:
        rows: G with zeros where entries were removed, shape [m, d].
        kept: M, True where an entry was released, shape [m, d].
        rank: B.

    Returns:
        shape [m, d], in the precision of ``rows``; None if the rank does not explain
        the kept entries.
    """
    share = kept.double().mean().clamp_min(1e-12)
    gram = sum(
        (part.double().T @ part.double() for part in rows.split(_BLOCK)),
        torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64),
    )
    # The diagonal is kept with probability 1 − ρ, a product of two entries with its
    # square.
    gram -= torch.diag(gram.diagonal() * (1 - share))
    basis = torch.linalg.eigh(gram)[1][:, -rank:]
    before, missed, size = float("inf"), float("inf"), 1.0
    for _ in range(_SWEEPS):
        basis, missed, size = _sweep(rows, kept, basis)
        if missed <= 1e-14 * size or before - missed <= _DONE * size:
            break
        before = missed
    if missed > _EXPLAINED * size:
        return None
    return torch.cat(
        [
            (completed_rows(part, mask, basis) @ basis.T).to(rows)
            for part, mask in zip(rows.split(_BLOCK), kept.split(_BLOCK), strict=True)
        ]
    )


def completed_rows(rows: Tensor, kept: Tensor, basis: Tensor) -> Tensor:
    """Return the coefficients C of rows whose kept entries lie in a span.

    Args:
        rows: G, shape [n, d].
        kept: M, shape [n, d].
        basis: V, shape [d, B].
    """
    mask = kept.to(basis)
    pairs = torch.einsum("da,db->dab", basis, basis).flatten(1)
    normal = (mask @ pairs).reshape(-1, basis.shape[1], basis.shape[1])
    return _solved(normal, (mask * rows.to(basis)) @ basis)


def _sweep(rows: Tensor, kept: Tensor, basis: Tensor) -> tuple[Tensor, float, float]:
    """Solve for all rows, then for the basis; also the squared error of the rows."""
    d, rank = basis.shape
    normal = torch.zeros(d, rank * rank, dtype=torch.float64)
    right = torch.zeros(d, rank, dtype=torch.float64)
    missed = size = 0.0
    for part, mask in zip(rows.split(_BLOCK), kept.split(_BLOCK), strict=True):
        shown = mask.double() * part.double()
        found = completed_rows(part, mask, basis)
        error = mask.double() * (found @ basis.T) - shown
        missed += float(error.square().sum())
        size += float(shown.square().sum())
        pairs = torch.einsum("na,nb->nab", found, found).flatten(1)
        normal += mask.double().T @ pairs
        right += shown.T @ found
    moved = _solved(normal.reshape(d, rank, rank), right)
    return torch.linalg.qr(moved).Q, missed, size


def _solved(normal: Tensor, right: Tensor) -> Tensor:
    """Solve many small normal equations, with a ridge where entries are too few."""
    trace = normal.diagonal(dim1=-2, dim2=-1).sum(-1)
    ridge = torch.where(trace > 0, _RIDGE * trace, torch.ones_like(trace))
    eye = torch.eye(normal.shape[-1]).to(normal)
    return torch.linalg.solve(normal + ridge[..., None, None] * eye, right)
