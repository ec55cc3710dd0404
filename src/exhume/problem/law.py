"""The law p(O | S) that a mechanism induces, as far as an attacker may know it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.problem.covariance import Covariance
from exhume.problem.tree import Tree, detached

if TYPE_CHECKING:
    from exhume.problem.observation import Candidate, ObservationModel
    from exhume.problem.task import Task

    VarianceMap = Callable[[Task, ObservationModel, Candidate], Tree]

__all__ = ["Family", "KeepWhere", "Law", "Times", "TreeMap", "Whitener"]

TreeMap = Callable[[Tree], Tree]
Family = Literal["gaussian", "laplace"]

#: Fisher information of the location of noise with variance 1
_INFORMATION = {"gaussian": 1.0, "laplace": 2.0}
_MIXED = (
    "Laplace noise is added to a release that is noisy already, and the sum is of no "
    "simple family"
)
_PRIVATE_AND_MORE = (
    "noise whose scale depends on the private data is combined with other noise or a "
    "mask, and its variance as a function of the data is then not known"
)
_PRIVATE_SCALED = (
    "the variance is a function of the private data through another forward model"
)


@dataclass(frozen=True, eq=False)
class KeepWhere:
    """The linear map that sets coordinates to zero where a mask is False.

    Attributes:
        mask: name → bool tensor; a name that is absent is kept whole.
    """

    mask: Mapping[str, Tensor]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the masked tree, differentiable."""
        return {
            name: torch.where(self.mask[name].to(t.device), t, 0)
            if name in self.mask
            else t
            for name, t in tree.items()
        }


@dataclass(frozen=True)
class Times:
    """The linear map t ↦ factor · t, picklable."""

    factor: float

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the scaled tree."""
        return {name: self.factor * t for name, t in tree.items()}


@dataclass(frozen=True, eq=False)
class Law:
    """O = h(F(S)) + n with zero-mean noise n: deterministic maps, then noise.

    The noise is Gaussian, n ~ N(0, diag v), unless ``family`` says Laplace; some
    tensors may share correlated Gaussian noise.

    A coordinate is in one of three states: *noisy* (v > 0), *exact* (v = 0, released
    without noise), or *void* (masked: a constant or pure noise, nothing about S). Only
    the mean and variance of coordinates that are not void are meant.

    Attributes:
        maps: h, applied in order to the exact F(S); each is a picklable callable from
            tree to tree, differentiable almost everywhere.
        variance: name → v, a scalar or a tensor of the parameter's shape; a name that
            is absent has v = 0. Of correlated noise it holds the diagonal.
        covariance: of the tensors whose noise is correlated, or None.
        family: of the noise: density ∝ exp(−n²/2v), or ∝ exp(−|n| √(2/v)).
        mask: name → bool tensor, True where the coordinate was kept; a name that is
            absent is kept whole.
        variance_at: (task, F, candidate) → v, if the variance is a function of the
            private data, so that the noise itself leaks; ``variance`` is then what
            public data make of it. Composable with ``torch.func``.
        irregular: a sentence if p(O | S) jumps as S moves (data-dependent masks), so
            that Fisher information does not exist; None otherwise.
        not_gaussian: a sentence if the law is not of this form; None otherwise.
        surrogate: a smooth approximation that attacks may descend on where the law
            itself jumps or is flat (rounding), made from what the release shows; None
            if there is no need. Bounds never read it.
    """

    maps: tuple[TreeMap, ...] = ()
    variance: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    covariance: Covariance | None = None
    family: Family = "gaussian"
    variance_at: VarianceMap | None = None
    irregular: str | None = None
    not_gaussian: str | None = None
    surrogate: Law | None = None

    @property
    def for_descent(self) -> Law:
        """The law that attacks by descent minimise: the surrogate if there is one."""
        return self if self.surrogate is None else self.surrogate

    @property
    def noisy(self) -> bool:
        """Whether any coordinate carries noise."""
        return any(bool((v > 0).any()) for v in self.variance.values())

    @property
    def cov_depends_on_data(self) -> bool:
        """Whether the covariance is a function of the private data."""
        return self.variance_at is not None

    @property
    def information_factor(self) -> float:
        """Fisher information of the location of this noise at variance 1."""
        return _INFORMATION[self.family]

    def variance_of(
        self, task: Task, model: ObservationModel, candidate: Candidate
    ) -> Tree:
        """Return v for one S: ``variance``, or ``variance_at`` where it is declared.

        Where ``not_gaussian`` says that v as a function of the data is not known,
        ``variance`` is the best guess.

        Args:
            task: that the client trains.
            model: F.
            candidate: S.
        """
        if self.variance_at is None or self.not_gaussian is not None:
            return dict(self.variance)
        own = self.variance_at(task, model, candidate)
        return {**self.variance, **detached(own)}

    def mean(self, update: Mapping[str, Tensor]) -> Tree:
        """Return h(update), the mean of the release, void coordinates set to 0."""
        tree = dict(update)
        for transform in self.maps:
            tree = transform(tree)
        return self.keep(tree)

    def noisy_on(self, names: Iterable[str]) -> bool:
        """Whether a coordinate of any of these tensors carries noise."""
        return any(bool((self.variance[n] > 0).any()) for n in self._with_noise(names))

    def noise_covers(self, names: Iterable[str]) -> bool:
        """Whether every coordinate of all of these tensors carries noise."""
        names = tuple(names)
        noisy = self._with_noise(names)
        return noisy == names and all(bool((self.variance[n] > 0).all()) for n in noisy)

    def _with_noise(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.variance)

    def keep(self, tree: Mapping[str, Tensor]) -> Tree:
        """Set void coordinates to zero; the identity where there is no mask."""
        return KeepWhere(self.mask)(tree)

    def exact_names(self, tree: Mapping[str, Tensor]) -> list[str]:
        """List the tensors that have a kept coordinate without noise."""
        return [name for name, t in tree.items() if self._has_exact(name, t)]

    def _has_exact(self, name: str, tensor: Tensor) -> bool:
        exact = self._variance(name, tensor) == 0
        if name in self.mask:
            exact = exact & self.mask[name].to(tensor.device)
        return bool(exact.any())

    def _variance(self, name: str, like: Tensor) -> Tensor:
        # In double precision: the square of a small std underflows in single.
        v = self.variance.get(name, torch.zeros(()))
        return v.to(like.device, torch.float64).expand(like.shape)

    def precision(self, like: Mapping[str, Tensor]) -> Tree:
        """Return 1/v on noisy coordinates and 0 on void ones, shaped like ``like``.

        Raises:
            ValueError: a kept coordinate has no noise, so its precision is infinite.
            InvalidInput: 1/v is too large for the precision of ``like``.
        """
        exact = self.exact_names(like)
        if exact:
            msg = f"released without noise, infinite precision: {', '.join(exact)}"
            raise ValueError(msg)
        result = {}
        for name, tensor in like.items():
            v = self._variance(name, tensor)
            weight = torch.where(v > 0, 1 / v.clamp_min(torch.finfo(v.dtype).tiny), 0)
            result[name] = weight.to(tensor.dtype)
            if bool(torch.isinf(result[name]).any()):
                msg = (
                    f"the noise on {name!r} is too small to be told from none in "
                    f"{tensor.dtype}; use float64 or a larger std"
                )
                raise InvalidInput(msg)
        return self.keep(result)

    def whitener(self, like: Mapping[str, Tensor]) -> TreeMap:
        """Return t ↦ R t with RᵀR = Σ⁻¹; void coordinates go to 0.

        Args:
            like: any tree of the release's layout, dtype and device.

        Raises:
            ValueError: a kept coordinate has no noise, so its precision is infinite.
            InvalidInput: the noise is too small for the precision of ``like``.
        """
        weights = {n: t.sqrt() for n, t in self.precision(like).items()}
        return Whitener(weights, self.covariance, self.mask)

    def then(self, transform: TreeMap) -> Law:
        """Append a deterministic map of the mean.

        The map sees what earlier masks left, so they join the maps before it. It must
        send void coordinates to constants, as scaling and pruning do. If it mixes or
        bends noise that is already there, the caller sets ``not_gaussian``.
        """
        before = (*self.maps, KeepWhere(self.mask)) if self.mask else self.maps
        surrogate = self.surrogate and self.surrogate.then(transform)
        return replace(self, maps=(*before, transform), surrogate=surrogate)

    def plus_noise(
        self,
        variance: Mapping[str, Tensor],
        *,
        family: Family = "gaussian",
        covariance: Covariance | None = None,
    ) -> Law:
        """Add independent noise: covariances add.

        A void coordinate that receives independent noise is pure noise; it stays void.
        One that receives correlated noise tells of the noise of others, so its mask
        becomes a map of the mean.

        Args:
            variance: v by name, of the tensors with independent coordinates.
            family: of the added noise.
            covariance: of tensors with correlated Gaussian noise, apart from those in
                ``variance``.

        Raises:
            InvalidInput: the sum of two correlated noises, or of a correlated and an
                independent one, has no cheap inverse.
        """
        if covariance is not None:
            law = self._unmasked(set(covariance.names))
            if law is not self:
                return law.plus_noise(variance, family=family, covariance=covariance)
        correlated = self._correlated(variance, covariance)
        diagonal = {} if covariance is None else covariance.diagonal()
        total = dict(self.variance)
        for name, v in {**variance, **diagonal}.items():
            total[name] = total[name] + v if name in total else v
        mixed = self.noisy and self.family != family
        twice = family == "laplace" and self.noisy_on(variance)
        unsaid = (_MIXED if mixed or twice else None) or (
            _PRIVATE_AND_MORE if self.cov_depends_on_data else None
        )
        return replace(
            self,
            variance=total,
            covariance=correlated,
            family=family if not self.noisy else self.family,
            not_gaussian=self.not_gaussian or unsaid,
            surrogate=self.surrogate
            and self.surrogate.plus_noise(
                variance, family=family, covariance=covariance
            ),
        )

    def plus_private_noise(
        self, variance: Mapping[str, Tensor], variance_at: VarianceMap
    ) -> Law:
        """Add independent Gaussian noise whose variance is a function of the data.

        Alone it is a law; beside other noise or a mask, before or after it, the
        variance as a function of the data is not known, and ``not_gaussian`` says so.

        Args:
            variance: what public data make of v, by name.
            variance_at: (task, F, candidate) → v.
        """
        law = replace(self.plus_noise(variance), variance_at=variance_at)
        if self.noisy or self.mask:
            return replace(law, not_gaussian=self.not_gaussian or _PRIVATE_AND_MORE)
        return law

    def scaled(self, factor: float) -> Law:
        """Return the law of factor · O, written in terms of factor · F(S).

        Args:
            factor: not 0; it may be negative, since all noise is symmetric.
        """
        square = factor**2
        maps = (Times(1 / factor), *self.maps, Times(factor)) if self.maps else ()
        private = self.variance_at is not None
        return replace(
            self,
            maps=maps,
            variance={name: square * v for name, v in self.variance.items()},
            covariance=self.covariance and self.covariance.scaled(square),
            variance_at=None,
            not_gaussian=self.not_gaussian or (_PRIVATE_SCALED if private else None),
            surrogate=self.surrogate and self.surrogate.scaled(factor),
        )

    def _unmasked(self, names: set[str]) -> Law:
        """Turn the masks of some tensors into a map of the mean."""
        own = {n: m for n, m in self.mask.items() if n in names}
        if not own:
            return self
        rest = {n: m for n, m in self.mask.items() if n not in own}
        return replace(self, maps=(*self.maps, KeepWhere(own)), mask=rest)

    def _correlated(
        self, variance: Mapping[str, Tensor], added: Covariance | None
    ) -> Covariance | None:
        """Return the covariance of all correlated tensors after an addition."""
        if self.covariance is not None:
            if added is not None:
                msg = "two correlated noises cannot be combined; use one of them"
                raise InvalidInput(msg)
            own = {n: v for n, v in variance.items() if n in self.covariance.names}
            return self.covariance.plus(own) if own else self.covariance
        if added is None:
            return None
        before = {n: v for n, v in self.variance.items() if n in added.names}
        return added.plus(before) if before else added

    def masked(self, mask: Mapping[str, Tensor]) -> Law:
        """Keep only the coordinates where ``mask`` is True; the others become void.

        A mask is linear and diagonal, so it commutes with independent noise. It takes
        the noise of removed coordinates away.
        """
        both = dict(self.mask)
        for name, m in mask.items():
            both[name] = both[name] & m if name in both else m
        correlated = self.covariance
        if correlated is not None:
            own = {n: m for n, m in mask.items() if n in correlated.names}
            correlated = correlated.masked(own) if own else correlated
        surrogate = self.surrogate and self.surrogate.masked(mask)
        unsaid = _PRIVATE_AND_MORE if self.cov_depends_on_data else None
        left = {n: v * mask[n].to(v) for n, v in self.variance.items() if n in mask}
        return replace(
            self,
            mask=both,
            variance={**self.variance, **left},
            covariance=correlated,
            surrogate=surrogate,
            not_gaussian=self.not_gaussian or unsaid,
        )


@dataclass(frozen=True, eq=False)
class Whitener:
    """The linear map t ↦ R t with RᵀR = Σ⁻¹, void coordinates at zero.

    Attributes:
        weights: 1/√v by name, 0 on void coordinates; of independent tensors.
        covariance: of the correlated tensors, or None.
        mask: of the void coordinates.
    """

    weights: Mapping[str, Tensor]
    covariance: Covariance | None
    mask: Mapping[str, Tensor]

    def __call__(self, tree: Mapping[str, Tensor]) -> Tree:
        """Return the whitened tree, in the layout of ``tree``."""
        white = {name: self.weights[name] * t for name, t in tree.items()}
        if self.covariance is None:
            return white
        kept = KeepWhere(self.mask)
        return {**white, **kept(self.covariance.whiten(kept(tree)))}
