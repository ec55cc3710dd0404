"""What bounds a mechanism's sensitivity, and how large its noise is beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = [
    "Guarantee",
    "Sensitivity",
    "Unit",
    "gaussian_multiplier",
    "laplace_multiplier",
]

Unit = Literal["example", "client"]
Family = Literal["gaussian", "laplace"]


@formula(
    r"z = \Big( \sum_g \big( C_g / \min_{j \in g} \sigma_j \big)^2 \Big)^{-1/2}",
    reference="definition: the worst direction in the norm that whitens the noise",
)
def gaussian_multiplier(norms: Iterable[float], stds: Iterable[float]) -> float:
    """Divide Gaussian noise by the sensitivity, in the direction where it is weakest.

    Args:
        norms: C_g > 0, largest Euclidean norm of each group of coordinates.
        stds: the smallest standard deviation within each group, ≥ 0.

    Returns:
        z ≥ 0; 0 if a group has a direction without noise, or there is no group.
    """
    pairs = list(zip(norms, stds, strict=True))
    if not pairs or any(std == 0 for _, std in pairs):
        return 0.0
    return _inverse(math.hypot(*(norm / std for norm, std in pairs)))


@formula(
    r"z = \Big( \sum_g \sqrt{n_g}\, C_g / \min_{j \in g} b_j \Big)^{-1},\quad "
    r"b = \sigma / \sqrt 2",
    reference="Dwork et al., TCC 2006; the 1-norm is at most √n times the 2-norm",
)
def laplace_multiplier(
    norms: Iterable[float], stds: Iterable[float], sizes: Iterable[int]
) -> float:
    """Divide the scale of Laplace noise by the sensitivity in the 1-norm.

    Args:
        norms: C_g > 0, largest Euclidean norm of each group of coordinates.
        stds: the smallest standard deviation within each group, ≥ 0.
        sizes: n_g, number of coordinates of each group.

    Returns:
        z ≥ 0; one release is (1/z, 0)-differentially private. 0 as in
        :func:`gaussian_multiplier`.
    """
    triples = list(zip(norms, stds, sizes, strict=True))
    if not triples or any(std == 0 for _, std, _ in triples):
        return 0.0
    return _inverse(
        sum(math.sqrt(2 * size) * norm / std for norm, std, size in triples)
    )


def _inverse(value: float) -> float:
    # Zero where masks removed everything: then nothing is released.
    return 1 / value if value > 0 else math.inf


@dataclass(frozen=True)
class Sensitivity:
    """One unit moves these tensors by at most ``norm``, in one Euclidean norm.

    Attributes:
        names: the tensors that the norm is taken over.
        norm: C > 0, in the units of the update, for adding or removing one unit;
            replacing one moves them by up to twice as much.
    """

    names: frozenset[str]
    norm: float


def _coupled(
    groups: tuple[Sensitivity, ...], names: frozenset[str]
) -> tuple[Sensitivity, ...]:
    """Merge the groups that one norm over ``names`` makes depend on each other."""
    met = [s for s in groups if s.names & names]
    if len(met) < 2:
        return groups
    joint = Sensitivity(
        frozenset[str]().union(*(s.names for s in met)),
        math.hypot(*(s.norm for s in met)),
    )
    return (*(s for s in groups if not s.names & names), joint)


def _together(one: Tensor, other: Tensor, family: Family) -> Tensor:
    """Return the variance that counts of two independent noises.

    Gaussian ones add up. A sum of two Laplace ones is not Laplace: the larger counts,
    and adding the other is post-processing.
    """
    return one + other if family == "gaussian" else torch.maximum(one, other)


@dataclass(frozen=True, eq=False)
class Guarantee:
    """What differential privacy needs of a mechanism; each defense adds its share.

    A mechanism is folded from left to right through ``Defense.account``. Noise counts
    only after the sensitivity was bounded, and what follows complete noise is
    post-processing: it neither costs nor gains privacy.

    Attributes:
        shapes: every tensor that is released.
        unit: whose presence is hidden: one example, or a client with all of its
            examples; None before anything is bounded.
        bounded: groups of tensors, each with its sensitivity.
        variance: name → variance of independent noise, a scalar or the tensor's
            shape; of correlated noise the smallest eigenvalue of its covariance.
        family: of the noise.
        kept: name → bool, False where a mask that does not depend on the data removed
            a coordinate, which then needs no noise.
        sealed: only post-processing followed, so later noise does not count.
        broken: sentences; with any there is no guarantee at all.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unit: Unit | None = None
    bounded: tuple[Sensitivity, ...] = ()
    variance: Mapping[str, Tensor] = field(default_factory=dict)
    family: Family = "gaussian"
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    sealed: bool = False
    broken: tuple[str, ...] = ()

    # --- what a defense calls --------------------------------------------------------

    def clipped(self, names: Iterable[str], norm: float, unit: Unit) -> Guarantee:
        """Bound what one unit contributes to these tensors, in one Euclidean norm.

        Clipping is a projection onto a ball, so it keeps every sensitivity that is
        bounded already. Noise that was there before no longer counts.

        Args:
            names: tensors under the norm.
            norm: C > 0, of one unit's share of the release; a mean over B examples,
                each clipped to C, has C / B.
            unit: whose contribution is clipped.

        Raises:
            InvalidInput: the norm is not positive and finite.
        """
        if not (math.isfinite(norm) and norm > 0):
            msg = f"the sensitivity is {norm}; expected a finite number above 0"
            raise InvalidInput(msg)
        if self.multiplier > 0:
            return self.processed()
        own = frozenset(names)
        noise = {name: v for name, v in self.variance.items() if name not in own}
        unnoised = replace(self, variance=noise)
        finer = self.unit == "example" and unit == "client"
        tighter = any(own <= s.names and s.norm <= norm for s in self.bounded)
        if self.bounded and (finer or (tighter and self.unit == unit)):
            return replace(unnoised, bounded=_coupled(self.bounded, own))
        others = self.bounded if self.unit == unit else ()
        kept = tuple(s for s in others if not s.names <= own)
        return replace(unnoised, unit=unit, bounded=(*kept, Sensitivity(own, norm)))

    def plus_noise(
        self, variance: Mapping[str, Tensor | float], family: Family = "gaussian"
    ) -> Guarantee:
        """Add independent noise whose scale does not depend on the private data.

        Args:
            variance: name → variance by coordinate, a scalar or the tensor's shape. Of
                correlated noise the smallest eigenvalue of the covariance, for every
                name that it spans.
            family: what the noise is drawn from.
        """
        if self.sealed:
            return self
        if self.variance and family != self.family:
            return self.processed("noise of two families is mixed")
        total = dict(self.variance)
        for name, v in variance.items():
            added = torch.as_tensor(v, dtype=torch.float64).cpu()
            if name in total:
                added = _together(total[name], added, family)
            total[name] = added
        return replace(self, variance=total, family=family)

    def masked(self, kept: Mapping[str, Tensor]) -> Guarantee:
        """Set coordinates to zero by a mask that does not depend on private data."""
        if self.sealed:
            return self
        both = dict(self.kept)
        for name, mask in kept.items():
            both[name] = both[name] & mask.cpu() if name in both else mask.cpu()
        return replace(self, kept=both)

    def processed(self, unknown: str | None = None) -> Guarantee:
        """Apply a map of the release alone: free after the noise, unknown before.

        Args:
            unknown: why nothing is known of the sensitivity after this map, if noise
                is not complete yet; None if the map keeps it.
        """
        if self.multiplier > 0:
            return replace(self, sealed=True)
        unnoised = replace(self, variance={})
        if unknown is None or not self.bounded:
            return unnoised
        return replace(unnoised, unit=None, bounded=(), broken=(*self.broken, unknown))

    def void(self, reason: str) -> Guarantee:
        """Give up: what the defense does has no guarantee, whatever follows."""
        return replace(self, broken=(*self.broken, reason))

    # --- what accounting reads -------------------------------------------------------

    @property
    def multiplier(self) -> float:
        """Scale of the noise over the sensitivity, in the worst direction; 0 if none.

        The standard deviation of Gaussian noise over the sensitivity in the 2-norm, or
        the scale of Laplace noise over the one in the 1-norm, for adding or removing
        one unit.
        """
        if self.broken or self._unbounded:
            return 0.0
        norms = [s.norm for s in self.bounded]
        stds = [self._smallest(s.names) ** 0.5 for s in self.bounded]
        if self.family == "gaussian":
            return gaussian_multiplier(norms, stds)
        sizes = [sum(map(self._released, s.names)) for s in self.bounded]
        return laplace_multiplier(norms, stds, sizes)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Sentences that say why ε is infinite; empty if it is finite."""
        if self.broken:
            return self.broken
        if not self.bounded:
            return (
                "no clipping bounds what one example or client can change, so no "
                "amount of noise is differentially private",
            )
        if self._unbounded:
            return (f"released without a bounded norm: {', '.join(self._unbounded)}",)
        bare = [n for n in self.shapes if self._smallest([n]) == 0]
        if bare:
            return (
                "the clipped update can move along coordinates that carry no noise "
                f"after the clipping: {', '.join(bare)}",
            )
        return ()

    @property
    def _unbounded(self) -> list[str]:
        free = dict.fromkeys(self.shapes)
        for group in self.bounded:
            for name in group.names:
                free.pop(name, None)
        return list(filter(self._released, free))

    def _released(self, name: str) -> int:
        """Count the coordinates that no public mask removed."""
        if name in self.kept:
            return int(self.kept[name].sum())
        return math.prod(self.shapes[name])

    def _smallest(self, names: Iterable[str]) -> float:
        """Return the least variance over released coordinates, ∞ if there are none."""
        least = math.inf
        for name in names:
            v = self.variance.get(name, torch.zeros((), dtype=torch.float64))
            if name in self.kept:
                v = v.expand(self.shapes[name])[self.kept[name]]
            if self._released(name):
                least = min(least, float(v.min()))
        return least
