"""Covariances of noise whose coordinates are not independent of each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.problem.tree import Tree, flatten, unflatten

__all__ = ["Covariance", "KroneckerFactors", "LowRank", "eigenvalues_exceed"]

# An eigenvalue of the low-rank part below this is nothing beside the identity.
_NOTHING = 1e-12
_PRECISION = 1e-6  # of the smallest eigenvalue, relatively
_ROWS = 2**12  # of a tall matrix that are multiplied at once


class Covariance(ABC):
    """Σ of zero-mean Gaussian noise over several tensors together, positive definite.

    It is applied through one root R with RᵀR = Σ⁻¹; Σ itself is never formed.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The tensors that the noise covers, in order."""

    @abstractmethod
    def diagonal(self) -> Tree:
        """Return the variance of every coordinate, by name."""

    @abstractmethod
    def whiten(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return R t for the covered tensors, linear and differentiable."""

    @abstractmethod
    def colour(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return R⁻¹ z, which has covariance Σ if z is white."""

    @abstractmethod
    def transposed_colour(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return L t with Lᵀ L = Σ, so that ‖L t‖² = tᵀ Σ t."""

    def plus(self, variance: Mapping[str, Tensor]) -> Covariance:
        """Return the covariance after independent noise on some covered tensors.

        Raises:
            InvalidInput: the sum has no cheap inverse.
        """
        raise InvalidInput(self._refusal("more noise is added", variance))

    def masked(self, mask: Mapping[str, Tensor]) -> Covariance:
        """Return Σ of the kept coordinates, the others independent of them.

        Raises:
            InvalidInput: the submatrix has no cheap inverse.
        """
        raise InvalidInput(self._refusal("coordinates are removed", mask))

    def blurred(self, variance: Mapping[str, Tensor]) -> Covariance:
        """Return the covariance with about this much more variance per tensor.

        Used to soften a problem, where an approximation will do.
        """
        own = sum(float(v.mean()) for v in self.diagonal().values())
        more = sum(float(variance[name].mean()) for name in self.names)
        return self.scaled(1 + more / own)

    @abstractmethod
    def least(self) -> float:
        """Return the smallest eigenvalue of Σ, or a positive lower bound of it."""

    @abstractmethod
    def scaled(self, factor: float) -> Covariance:
        """Return factor · Σ, factor > 0."""

    def _refusal(self, what: str, names: Mapping[str, Tensor]) -> str:
        return (
            f"{what} ({', '.join(names)}) after noise whose covariance is of the form "
            f"{type(self).__name__}, and the result has no cheap inverse; use noise "
            f"with a covariance that is diagonal, or diagonal plus low rank"
        )


@dataclass(frozen=True, eq=False)
class LowRank(Covariance):
    """Σ = D^{1/2} (I + Q diag(e) Qᵀ) D^{1/2} with diagonal D and few columns in Q.

    It is closed under more independent noise and under masks; a product costs O(P k).

    Attributes:
        root: √D by name, positive, of the shapes of the parameters.
        basis: Q, shape [P, k], orthonormal columns, in the order of ``root``.
        excess: e > −1, shape [k]; negative where there is less noise than D.

    Raises:
        InvalidInput: Σ is not positive definite.
    """

    root: Mapping[str, Tensor]
    basis: Tensor
    excess: Tensor

    def __post_init__(self) -> None:
        positive = all(bool((r > 0).all()) for r in self.root.values())
        if not positive or not bool((self.excess > -1).all()):
            msg = "the covariance is not positive definite; add a floor to it"
            raise InvalidInput(msg)

    @classmethod
    def of(
        cls, variance: Mapping[str, Tensor], factor: Tensor, core: Tensor | None = None
    ) -> LowRank:
        """Decompose diag(v) + U C Uᵀ.

        Args:
            variance: v > 0 by name, of the shapes of the parameters.
            factor: U, shape [P, k], rows in the order of ``variance``.
            core: C, shape [k], a diagonal; ones if None.

        Raises:
            InvalidInput: the sum is not positive definite.
        """
        root = {name: v.sqrt() for name, v in variance.items()}
        whitened = factor / flatten(root).to(factor).unsqueeze(-1)
        basis, triangle = torch.linalg.qr(whitened)
        weights = torch.ones(factor.shape[1]).to(factor) if core is None else core
        small = (triangle * weights) @ triangle.T
        excess, turn = torch.linalg.eigh((small + small.T) / 2)
        kept = excess.abs() > _NOTHING
        return cls(root, basis @ turn[:, kept], excess[kept])

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that the noise covers, in order."""
        return tuple(self.root)

    def diagonal(self) -> Tree:
        """Return D_i (1 + Σ_k e_k Q_ik²)."""
        growth = 1 + self.basis.square() @ self.excess
        own = unflatten(growth, self.root)
        return {name: r.square() * own[name] for name, r in self.root.items()}

    def whiten(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return (I + Q diag((1 + e)^{-1/2} − 1) Qᵀ) D^{-1/2} t."""
        scaled = {n: tree[n] / r.to(tree[n]) for n, r in self.root.items()}
        flat = flatten(scaled)
        basis, excess = self.basis.to(flat), self.excess.to(flat)
        weight = (1 + excess).rsqrt() - 1
        return unflatten(flat + basis @ (weight * (basis.T @ flat)), scaled)

    def colour(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return D^{1/2} (I + Q diag((1 + e)^{1/2} − 1) Qᵀ) z."""
        coloured = self._grown({name: tree[name] for name in self.root})
        return {n: r.to(coloured[n]) * coloured[n] for n, r in self.root.items()}

    def _grown(self, tree: Tree) -> Tree:
        flat = flatten(tree)
        basis, excess = self.basis.to(flat), self.excess.to(flat)
        weight = (1 + excess).sqrt() - 1
        return unflatten(flat + basis @ (weight * (basis.T @ flat)), tree)

    def transposed_colour(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return (I + Q diag((1 + e)^{1/2} − 1) Qᵀ) D^{1/2} t."""
        scaled = {n: tree[n] * r.to(tree[n]) for n, r in self.root.items()}
        return self._grown(scaled)

    def plus(self, variance: Mapping[str, Tensor]) -> LowRank:
        """Add to the diagonal part and decompose again."""
        total = {
            name: r.square() + variance.get(name, torch.zeros(())).to(r)
            for name, r in self.root.items()
        }
        return LowRank.of(total, self._factor(), self.excess)

    def blurred(self, variance: Mapping[str, Tensor]) -> LowRank:
        """Return the covariance with exactly this much more variance."""
        return self.plus(variance)

    def masked(self, mask: Mapping[str, Tensor]) -> LowRank:
        """Cut removed coordinates out of the low-rank part."""
        ones = {n: torch.ones_like(r, dtype=torch.bool) for n, r in self.root.items()}
        kept = flatten({n: mask.get(n, m) for n, m in ones.items()})
        variance = {name: r.square() for name, r in self.root.items()}
        factor = self._factor() * kept.to(self.basis).unsqueeze(-1)
        return LowRank.of(variance, factor, self.excess)

    def least(self) -> float:
        """Return the smallest eigenvalue of Σ, from below, to six digits.

        By bisection between min D · (1 + min(e, 0)) and the smallest diagonal entry;
        a step costs O(P k²).
        """
        diagonal = flatten({name: r.square().double() for name, r in self.root.items()})
        low = float(diagonal.min()) * (1 + min(0.0, *self.excess.tolist(), 0.0))
        high = min(float(v.min()) for v in self.diagonal().values())
        while high - low > _PRECISION * high:
            middle = (low + high) / 2
            if eigenvalues_exceed(middle, diagonal, self.basis, self.excess):
                low = middle
            else:
                high = middle
        return low

    def scaled(self, factor: float) -> LowRank:
        """Scale the diagonal part; the shape relative to it stays."""
        root = {name: factor**0.5 * r for name, r in self.root.items()}
        return LowRank(root, self.basis, self.excess)

    def _factor(self) -> Tensor:
        root = flatten(self.root).to(self.basis).unsqueeze(-1)
        return root * self.basis


@formula(
    r"n_-(\Sigma - t I) = n_-(A) + n_+(E^{-1} + Q^\top A^{-1} Q) - n_+(E),\quad "
    r"A = I - t D^{-1},\; \Sigma = D^{1/2} (I + Q E Q^\top) D^{1/2}",
    reference="Sylvester's law of inertia, on the two Schur complements of one matrix",
)
def eigenvalues_exceed(
    threshold: float, diagonal: Tensor, basis: Tensor, excess: Tensor
) -> bool:
    """Whether every eigenvalue of Σ = D^{1/2} (I + Q E Qᵀ) D^{1/2} is above t.

    What rounding leaves undecided counts as no.

    Args:
        threshold: t > 0.
        diagonal: D, shape [P], positive.
        basis: Q, shape [P, k].
        excess: the diagonal of E, shape [k].
    """
    kept = excess.abs() > _NOTHING
    basis, excess = basis[:, kept], excess[kept].double()
    remainder = 1 - threshold / diagonal.double()
    below = int((remainder < 0).sum())
    if bool((remainder == 0).any()) or below > int((excess > 0).sum()):
        return False  # more entries of D below t than the low-rank part can lift
    root = excess.abs().sqrt()
    small = torch.diag(excess.sign())
    for rows, weight in zip(
        basis.split(_ROWS), remainder.reciprocal().split(_ROWS), strict=True
    ):
        block = rows.double() * root
        small += block.T @ (weight.unsqueeze(-1) * block)
    if not len(small):
        return below == 0
    values = torch.linalg.eigvalsh(small)
    undecided = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    positive = int((values > -undecided).sum())
    return below + positive == int((excess > 0).sum())


@dataclass(frozen=True, eq=False)
class KroneckerFactors(Covariance):
    """Σ = ⊕_l A_l ⊗ B_l: one pair of small factors per tensor, independent tensors.

    A tensor of shape [m, …] is read as a matrix [m, n], a vector as [m, 1], a number as
    [1, 1]; then Cov(X_ij, X_kl) = A_ik B_jl.

    Attributes:
        left: A_l^{1/2} by name, symmetric positive definite, shape [m, m].
        right: B_l^{1/2} by name, symmetric positive definite, shape [n, n].
        shapes: of the tensors, by name.
    """

    left: Mapping[str, Tensor]
    right: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    _inverses: Mapping[str, tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Not at first use: what is made inside of a transform of functions dies there.
        pairs = {
            name: (torch.linalg.inv(self.left[name]), torch.linalg.inv(right))
            for name, right in self.right.items()
        }
        object.__setattr__(self, "_inverses", pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that the noise covers, in order."""
        return tuple(self.left)

    def diagonal(self) -> Tree:
        """Return A_ii B_jj."""
        return {
            name: torch.outer(
                self.left[name].square().sum(1), self.right[name].square().sum(1)
            ).reshape(self.shapes[name])
            for name in self.names
        }

    def whiten(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return A^{-1/2} X B^{-1/2}, tensor by tensor."""
        return {
            name: _sandwiched(*self._inverses[name], tree[name]) for name in self.names
        }

    def colour(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return A^{1/2} Z B^{1/2}, tensor by tensor."""
        return {
            name: _sandwiched(self.left[name], self.right[name], tree[name])
            for name in self.names
        }

    def transposed_colour(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return A^{1/2} X B^{1/2}: the roots are symmetric."""
        return self.colour(tree)

    def least(self) -> float:
        """Return the smallest product of eigenvalues of A and B over the tensors."""
        return min(
            float(torch.linalg.eigvalsh(self.left[name])[0] ** 2)
            * float(torch.linalg.eigvalsh(self.right[name])[0] ** 2)
            for name in self.names
        )

    def scaled(self, factor: float) -> KroneckerFactors:
        """Scale the left factors."""
        left = {name: factor**0.5 * a for name, a in self.left.items()}
        return KroneckerFactors(left, self.right, self.shapes)


def _sandwiched(left: Tensor, right: Tensor, tensor: Tensor) -> Tensor:
    """Return L X R for a tensor that is read as a matrix X."""
    matrix = tensor.reshape(len(left), -1)
    return (left.to(matrix) @ matrix @ right.to(matrix)).reshape(tensor.shape)
