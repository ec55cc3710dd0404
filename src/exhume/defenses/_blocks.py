"""Products of tall matrices that never hold much more than the matrices themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["columns_at_once", "inner", "row_blocks"]

_ROWS = 2**16
# Entries of a group of columns that are worked on together, and columns at most: the
# fastest number measured on LeNet.
_ENTRIES = 2**23
_COLUMNS = 64


def row_blocks(rows: int) -> Iterator[slice]:
    """Cut the rows of a tall matrix into blocks, in order."""
    for start in range(0, rows, _ROWS):
        yield slice(start, min(start + _ROWS, rows))


def columns_at_once(rows: int) -> int:
    """Return how many columns of this height to work on together, at least one."""
    return max(1, min(_COLUMNS, _ENTRIES // max(rows, 1)))


def inner(left: Tensor, right: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return Aᵀ diag(w) B in double precision, whatever the factors are stored in.

    Args:
        left: A, shape [P, m].
        right: B, shape [P, n].
        weight: w, shape [P]; ones if None.

    Returns:
        shape [m, n], float64.
    """
    total = left.new_zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for rows in row_blocks(len(left)):
        block = right[rows].double()
        if weight is not None:
            block = weight[rows].unsqueeze(-1) * block
        total += left[rows].double().T @ block
    return total
