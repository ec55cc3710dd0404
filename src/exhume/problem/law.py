"""The law p(O | S) that a mechanism induces, as far as an attacker may know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exhume.problem.tree import Tree

__all__ = ["Law"]

TreeMap = Callable[[Tree], Tree]


@dataclass(frozen=True, eq=False)
class Law:
    """O = h(F(S)) + n with n ~ N(0, diag v): deterministic maps, then Gaussian noise.

    A coordinate is in one of three states: *noisy* (v > 0), *exact* (v = 0, released
    without noise), or *void* (masked: it is a constant and says nothing about S).

    Attributes:
        maps: h, applied in order to the exact F(S); each is a picklable callable from
            tree to tree, differentiable almost everywhere.
        variance: name → v, a scalar or a tensor of the parameter's shape; a name that
            is absent has v = 0.
        mask: name → bool tensor, True where the coordinate was kept; a name that is
            absent is kept whole.
        cov_depends_on_data: the covariance is a function of the private data, so that
            the noise itself leaks.
        irregular: a sentence if p(O | S) jumps as S moves (data-dependent masks), so
            that Fisher information does not exist; None otherwise.
        not_gaussian: a sentence if the law is not of this form; None otherwise.
    """

    maps: tuple[TreeMap, ...] = ()
    variance: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    cov_depends_on_data: bool = False
    irregular: str | None = None
    not_gaussian: str | None = None

    @property
    def noisy(self) -> bool:
        """Whether any coordinate carries noise."""
        return any(bool((v > 0).any()) for v in self.variance.values())

    def mean(self, update: Tree) -> Tree:
        """Return h(update), the mean of the release, void coordinates set to 0."""
        for transform in self.maps:
            update = transform(update)
        return self.keep(update)

    def keep(self, tree: Tree) -> Tree:
        """Set void coordinates to zero; the identity where there is no mask."""
        return {
            name: t * self.mask[name].to(t.dtype) if name in self.mask else t
            for name, t in tree.items()
        }

    def exact_names(self, tree: Mapping[str, Tensor]) -> list[str]:
        """List the tensors that have a kept coordinate without noise."""
        return [name for name, t in tree.items() if self._has_exact(name, t)]

    def _has_exact(self, name: str, tensor: Tensor) -> bool:
        exact = torch.broadcast_to(self._variance(name, tensor) == 0, tensor.shape)
        if name in self.mask:
            exact = exact & self.mask[name]
        return bool(exact.any())

    def _variance(self, name: str, like: Tensor) -> Tensor:
        return self.variance.get(name, like.new_zeros(())).to(like.dtype)

    def precision(self, like: Tree) -> Tree:
        """Return 1/v on noisy coordinates and 0 on void ones, shaped like ``like``.

        Raises:
            ValueError: a kept coordinate has no noise, so its precision is infinite.
        """
        exact = self.exact_names(like)
        if exact:
            msg = f"released without noise, infinite precision: {', '.join(exact)}"
            raise ValueError(msg)
        result = {}
        for name, tensor in like.items():
            v = self._variance(name, tensor)
            weight = torch.where(v > 0, 1 / v.clamp_min(torch.finfo(v.dtype).tiny), 0)
            result[name] = torch.broadcast_to(weight, tensor.shape)
        return self.keep(result)

    def then(self, transform: TreeMap) -> Law:
        """Append a deterministic map to a law that has no noise yet."""
        return replace(self, maps=(*self.maps, transform))

    def plus_noise(self, variance: Mapping[str, Tensor]) -> Law:
        """Add independent Gaussian noise: variances add, noisy coordinates unmask.

        A void coordinate that receives noise is pure noise; it stays void.
        """
        total = dict(self.variance)
        for name, v in variance.items():
            total[name] = total[name] + v if name in total else v
        return replace(self, variance=total)

    def masked(self, mask: Mapping[str, Tensor]) -> Law:
        """Keep only the coordinates where ``mask`` is True; the others become void."""
        both = dict(self.mask)
        for name, m in mask.items():
            both[name] = both[name] & m if name in both else m
        return replace(self, mask=both)
