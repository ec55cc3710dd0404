"""How far the update of a candidate is from the observation: one formula each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exhume.errors import UnknownName
from exhume.formula import formula
from exhume.problem.law import Law, Whitener
from exhume.problem.tree import Tree, flatten, subtract
from exhume.registry import did_you_mean, function_named

__all__ = [
    "Discrepancy",
    "DiscrepancyName",
    "absolute_deviation",
    "angle_and_length",
    "cosine_distance",
    "distance_named",
    "gaussian_likelihood",
    "laplace_likelihood",
    "layerwise_euclidean",
    "likelihood_precision",
    "make_discrepancy",
    "squared_euclidean",
]

DiscrepancyName = Literal[
    "euclidean", "layerwise-euclidean", "absolute", "cosine", "cosine-and-length"
]

# Share of the relative squared error beside the cosine distance.
_LENGTH = 0.1

# In a release that is noisy in part, an exact coordinate counts as noisy with this
# share of the smallest declared deviation: its true precision is infinite, and already
# much less makes the objective too narrow a valley for first-order solvers.
_EXACT = 0.1


@formula(
    r"\lVert F(x) - O \rVert_2^2", reference="Zhu et al., NeurIPS 2019, eq. (1)–(2)"
)
def squared_euclidean(update: Tree, observed: Tree) -> Tensor:
    """Return the squared Euclidean distance over all tensors together, ≥ 0.

    Args:
        update: F(x) by name.
        observed: O, same layout.
    """
    return flatten(subtract(update, observed)).square().sum()


@formula(
    r"\sum_l \lVert F(x)_l - O_l \rVert_2",
    reference="Yin et al., CVPR 2021 (GradInversion), L_grad",
)
def layerwise_euclidean(update: Tree, observed: Tree) -> Tensor:
    """Return the sum over tensors of their Euclidean distances, ≥ 0.

    Args:
        update: F(x) by name.
        observed: O, same layout.
    """
    difference = subtract(update, observed)
    return torch.stack([torch.linalg.vector_norm(t) for t in difference.values()]).sum()


@formula(r"\lVert F(x) - O \rVert_1", reference="Deng et al., EMNLP 2021 (TAG)")
def absolute_deviation(update: Tree, observed: Tree) -> Tensor:
    """Return the sum of absolute differences over all tensors, ≥ 0.

    Args:
        update: F(x) by name.
        observed: O, same layout.
    """
    return flatten(subtract(update, observed)).abs().sum()


@formula(
    r"1 - \frac{\langle F(x), O \rangle}{\lVert F(x) \rVert_2 \lVert O \rVert_2}",
    reference="Geiping et al., NeurIPS 2020, eq. (4)",
)
def cosine_distance(update: Tree, observed: Tree) -> Tensor:
    """Return one minus the cosine of the angle over all tensors together, in [0, 2].

    A zero vector has no direction; its distance is 1.

    Args:
        update: F(x) by name.
        observed: O, same layout.
    """
    a, b = flatten(update), flatten(observed)
    lengths = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
    # Squares of smaller entries underflow, and with them the length.
    least = torch.finfo(a.dtype).tiny ** 0.5
    if min(lengths) < least:
        return 1 - 0 * a.sum()
    return 1 - a.dot(b) / (lengths[0] * lengths[1])


@formula(
    r"1 - \frac{\langle F(x), O \rangle}{\lVert F(x) \rVert_2 \lVert O \rVert_2}"
    r" + w \frac{\lVert F(x) - O \rVert_2^2}{\lVert O \rVert_2^2}",
    reference="cosine distance of Geiping et al., NeurIPS 2020, with a relative error",
)
def angle_and_length(update: Tree, observed: Tree, weight: float = _LENGTH) -> Tensor:
    """Return the cosine distance plus the relative squared error, ≥ 0.

    The angle alone does not say how far a client went; where its steps are simulated,
    their length is known. Beside an observation of zero only the angle counts.

    Args:
        update: F(x) by name.
        observed: O, same layout.
        weight: w ≥ 0.
    """
    power = flatten(observed).square().sum()
    angle = cosine_distance(update, observed)
    if power < torch.finfo(power.dtype).tiny:
        return angle
    return angle + weight * squared_euclidean(update, observed) / power


@formula(
    r"\tfrac12 \lVert \Sigma^{-1/2} (O - h(F(x))) \rVert_2^2",
    reference="Balunović et al., ICLR 2022, Gaussian defenses",
)
def gaussian_likelihood(mean: Tree, observed: Tree) -> Tensor:
    """Return −log p(O | x) of Gaussian noise, up to a constant, ≥ 0.

    Args:
        mean: Σ^{-1/2} h(F(x)), by name.
        observed: Σ^{-1/2} O, same layout.
    """
    return 0.5 * squared_euclidean(mean, observed)


@formula(
    r"\sqrt 2\, \lVert \Sigma^{-1/2} (O - h(F(x))) \rVert_1",
    reference="Balunović et al., ICLR 2022, Laplace defenses; Σ = diag(2 b²)",
)
def laplace_likelihood(mean: Tree, observed: Tree) -> Tensor:
    """Return −log p(O | x) of Laplace noise, up to a constant, ≥ 0.

    Args:
        mean: Σ^{-1/2} h(F(x)), by name.
        observed: Σ^{-1/2} O, same layout.
    """
    return 2**0.5 * absolute_deviation(mean, observed)


def likelihood_precision(observed: Tree, law: Law) -> Tree:
    """Return the diagonal of Σ⁻¹ for a release that is noisy, wholly or in part.

    Args:
        observed: O by name, void coordinates at zero.
        law: with noise.
    """
    if not law.exact_names(observed):
        return law.precision(observed)
    declared = torch.cat([v.reshape(-1) for v in law.variance.values()])
    floor = _EXACT**2 * float(declared[declared > 0].min())
    zeros = {name: torch.zeros_like(t) for name, t in observed.items()}
    return law.keep(
        {
            name: 1 / (z + law.variance.get(name, z).to(z)).clamp_min(floor)
            for name, z in zeros.items()
        }
    )


_PLAIN: dict[str, Callable[[Tree, Tree], Tensor]] = {
    "euclidean": squared_euclidean,
    "layerwise-euclidean": layerwise_euclidean,
    "absolute": absolute_deviation,
    "cosine": cosine_distance,
    "cosine-and-length": angle_and_length,
}


def distance_named(name: str) -> Callable[[Tree, Tree], Tensor]:
    """Return a distance (F(x), O) ↦ d ≥ 0, of ours or the user's own.

    Args:
        name: a name in ``DiscrepancyName``, or ``module:function``; the function is
            differentiable in its first argument.

    Raises:
        UnknownName: there is none; the message lists the known ones.
        NotImported: its module may not be imported here.
    """
    if name in _PLAIN:
        return _PLAIN[name]
    if ":" in name:
        return function_named("discrepancy", name)
    raise UnknownName(did_you_mean("discrepancy", name, list(_PLAIN)))


# Distances between directions: noise whitens their arguments and leaves them as they
# are, where it turns the others into its likelihood.
_DIRECTIONS = {"cosine", "cosine-and-length"}


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """A distance between an update and one fixed observation, as the attacker knows it.

    With a declared law the update first passes h (clipping, masks), void coordinates
    count nowhere, and declared noise weighs every coordinate: distances become the
    likelihood of the noise, the cosine is taken between whitened vectors, and so is a
    distance of the user's own. Without a law
    every coordinate of F(x) is compared with O as it is, zeros of an undeclared mask
    included: that is what it means not to know the defense.

    Attributes:
        name: see :func:`distance_named`.
        observed: O, void coordinates at zero.
        law: the declared law, or the identity.
        whiten: t ↦ Σ^{-1/2} t if the law is noisy, else None.
    """

    name: str
    observed: Tree
    law: Law
    whiten: Whitener | None

    def __call__(self, update: Tree) -> Tensor:
        """Return the distance of F(x) from O, a scalar."""
        mean = self.law.mean(update)
        distance = distance_named(self.name)
        if self.whiten is None:
            return distance(mean, self.observed)
        mean, observed = self.whiten(mean), self.whiten(self.observed)
        if self.name in _DIRECTIONS or self.name not in _PLAIN:
            return distance(mean, observed)
        if self.law.family == "laplace":
            return laplace_likelihood(mean, observed)
        return gaussian_likelihood(mean, observed)

    @property
    def floor(self) -> float:
        """What rounding alone makes of the distance at the exact answer."""
        unit = 16 * torch.finfo(next(iter(self.observed.values())).dtype).eps
        if self.whiten is not None or self.name not in _PLAIN:
            return 0.0
        if self.name in _DIRECTIONS:
            return unit**2
        scale = float(flatten(self.observed).abs().sum())
        if self.name == "euclidean":
            scale = float(flatten(self.observed).square().sum())
            return unit**2 * scale
        return unit * scale if self.name == "absolute" else unit * scale**0.5


def make_discrepancy(
    name: str,
    observed: Mapping[str, Tensor],
    law: Law | None,
    dtype: torch.dtype,
) -> Discrepancy:
    """Fit a discrepancy to an observation.

    Args:
        name: see :func:`distance_named`; a noisy law replaces it (see ``Discrepancy``).
        observed: O by name.
        law: p(O | S), or None if the attacker does not know it.
        dtype: precision of the computation.
    """
    known = Law() if law is None else law.for_descent
    kept = known.keep({n: t.to(dtype) for n, t in observed.items()})
    weighs = known.noisy and known.not_gaussian is None
    if not weighs:
        return Discrepancy(name, kept, known, None)
    weights = {n: t.sqrt() for n, t in likelihood_precision(kept, known).items()}
    whiten = Whitener(weights, known.covariance, known.mask)
    return Discrepancy(name, kept, known, whiten)
