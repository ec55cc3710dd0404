"""Columns of a tall matrix, tensor by tensor, in the small spaces that they span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.defenses._blocks import columns_at_once, inner
from exhume.defenses._principal_directions import Tangents
from exhume.keys import generator

__all__ = ["Columns", "MatrixColumns", "read_as_matrices"]

_STORED = 2**29  # bytes of columns that are kept
# Sides of a matrix shorter than this are not worth a smaller space.
_LEAST_SIDE = 64
# Singular values below this share of the largest are rounding; so is a loss of this
# share of the squares.
_NEGLIGIBLE, _LOST = 1e-6, 1e-10


@dataclass(frozen=True, eq=False)
class MatrixColumns:
    """Matrices X_c = Q Y_c Rᵀ, the columns c of one tensor.

    The gradient of a dense layer for one example is a product of two vectors, and its
    derivatives are sums of two: all columns of an example then share few rows and few
    columns of numbers, and products with them cost next to nothing.

    Attributes:
        left: Q, shape [m, k], orthonormal columns; None for the identity.
        core: Y_c, shape [C, k, l]; float64 unless it is X_c itself.
        right: R, shape [n, l], likewise.
    """

    left: Tensor | None
    core: Tensor
    right: Tensor | None

    def combined(self, weight: Tensor) -> MatrixColumns:
        """Return Σ_c X_c W_cd, for W of shape [C, D]."""
        core = torch.tensordot(weight.T.to(self.core), self.core, dims=1)
        return replace(self, core=core)

    def partial_traces(self) -> tuple[Tensor, Tensor]:
        """Return Σ_c X_c X_cᵀ, shape [m, m], and Σ_c X_cᵀ X_c, shape [n, n]."""
        _, rows, width = self.core.shape
        own = self.core.new_zeros(rows, rows, dtype=torch.float64)
        other = self.core.new_zeros(width, width, dtype=torch.float64)
        for x in self._parts():
            own += torch.einsum("nij,nkj->ik", x, x)
            other += torch.einsum("nij,nik->jk", x, x)
        return _expanded(self.left, own), _expanded(self.right, other)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ⟨L X_c R, L X_d R⟩ for all c and d, shape [C, C], float64.

        Args:
            left: L, symmetric, shape [m, m].
            right: R, symmetric, shape [n, n].
        """
        first, second = _rotated(left, self.left), _rotated(right, self.right)
        moved = [(first @ x @ second.mT).to(self.core) for x in self._parts()]
        flat = torch.cat(moved).flatten(1).T
        return inner(flat, flat)

    def apart(self) -> MatrixColumns:
        """Return the same matrices in a memory of their own."""
        return replace(self, core=self.core.clone())

    def _parts(self) -> Iterator[Tensor]:
        """Yield Y_c for some c at once."""
        _, rows, width = self.core.shape
        return (x.double() for x in self.core.split(columns_at_once(rows * width)))


def _expanded(basis: Tensor | None, inside: Tensor) -> Tensor:
    return inside if basis is None else basis @ inside @ basis.T


def _rotated(matrix: Tensor, basis: Tensor | None) -> Tensor:
    """Return a matrix with the same products of columns as L Q."""
    return matrix if basis is None else torch.linalg.qr(matrix @ basis).R


class Columns:
    """Pieces of columns, each a tensor [P, C], read as matrices tensor by tensor.

    What they come to is kept if it takes 512 MB at most; else it is made of the pieces
    again whenever it is gone through.

    Args:
        pieces: the same ones whenever they are gone through.
        shapes: tensors in the layout of one column.
    """

    def __init__(self, pieces: Iterable[Tensor], shapes: Mapping[str, Tensor]) -> None:
        self._pieces, self._shapes = pieces, shapes
        self._kept: list[dict[str, MatrixColumns]] | None = []
        room = _STORED
        for piece in pieces:
            one = read_as_matrices(piece, shapes)
            if isinstance(pieces, Tangents):
                # They are computed anew: a view of one tensor would keep all of them.
                one = {name: t.apart() for name, t in one.items()}
            room -= sum(t.core.numel() * t.core.itemsize for t in one.values())
            if room < 0:
                self._kept = None
                break
            self._kept.append(one)

    def __iter__(self) -> Iterator[dict[str, MatrixColumns]]:
        """Yield the matrices of each piece by name."""
        if self._kept is not None:
            return iter(self._kept)
        return (read_as_matrices(piece, self._shapes) for piece in self._pieces)


def read_as_matrices(
    piece: Tensor, shapes: Mapping[str, Tensor]
) -> dict[str, MatrixColumns]:
    """Read every tensor of every column as a matrix, and find the spaces they span.

    A tensor of shape [m, …] is read as a matrix [m, n], a vector as [m, 1], a number as
    [1, 1]. Where the spaces are not small, matrices are left as they are.

    Args:
        piece: shape [P, C].
        shapes: tensors in the layout of one column.
    """
    sizes = [like.numel() for like in shapes.values()]
    parts = zip(shapes.items(), piece.split(sizes), strict=True)
    return {
        name: _compressed(own, len(like) if like.dim() else 1)
        for (name, like), own in parts
    }


def _compressed(own: Tensor, rows: int) -> MatrixColumns:
    """Find the spaces of one tensor of shape [P_l, C], read as C matrices."""
    whole = MatrixColumns(None, own.T.reshape(own.shape[1], rows, -1), None)
    left, right = _span(whole.core), _span(whole.core.mT)
    if left is None and right is None:
        return whole
    core, squares = [], 0.0
    for x in whole._parts():
        squares += float(torch.linalg.vector_norm(x)) ** 2
        inside = x if left is None else left.T @ x
        core.append(inside if right is None else inside @ right)
    found = MatrixColumns(left, torch.cat(core), right)
    lost = squares - float(torch.linalg.vector_norm(found.core)) ** 2
    return found if lost <= _LOST * squares else whole


def _span(matrices: Tensor) -> Tensor | None:
    """Return an orthonormal basis of what all matrices map to; None if it is large.

    Each matrix is multiplied by a few random vectors, which show all that it maps to if
    its rank is no larger than their number (Halko et al. 2011).

    Args:
        matrices: shape [C, m, n].
    """
    count, rows, width = matrices.shape
    probes = min(rows // (2 * count), width)
    if rows < _LEAST_SIDE or probes == 0:
        return None
    source = generator(0, "span-of-matrices")
    drawn = torch.randn(width, probes, generator=source, dtype=torch.float64)
    parts = matrices.split(columns_at_once(rows * width))
    sketch = torch.cat([part.double() @ drawn.to(part.device) for part in parts])
    sketch = sketch.transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(sketch.T @ sketch)
    kept = values > _NEGLIGIBLE**2 * values[-1]
    if not bool(kept.any()):
        return None
    leading = sketch @ (vectors[:, kept] / values[kept].sqrt())
    return torch.linalg.qr(leading).Q
