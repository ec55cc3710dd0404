"""Whether hidden weights are Gaussian enough for Stein's lemma; centred, whitened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.attacks.two_layer.view import Rows, TwoLayerView
from exhume.formula import formula

__all__ = [
    "CentredRows",
    "Weights",
    "WhitenedRows",
    "inspect_weights",
    "mean_significance",
]

_SAMPLED = 8192  # rows that are looked at, at least
_PLACES = 16  # where they are taken from
_SIGNIFICANT = 6.0  # standard errors
_CHANCE = 1e-9  # of a mean that is none
_RIDGE = 1e-12  # relative to the variance


@dataclass(frozen=True, eq=False)
class CentredRows:
    """Rows less their mean, block by block.

    Attributes:
        rows: M, shape [m, d].
        mean: μ, shape [d].
    """

    rows: Rows
    mean: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (m, d)."""
        return tuple(self.rows.shape)

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return a block of M − 1 μᵀ."""
        part = self.rows[rows]
        return part - self.mean.to(part)


@dataclass(frozen=True, eq=False)
class WhitenedRows:
    """Rows times a fixed matrix, multiplied out block by block.

    Attributes:
        rows: M, shape [m, d].
        right: R, shape [d, d].
    """

    rows: Rows
    right: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (m, d)."""
        return tuple(self.rows.shape)

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return a block of M R."""
        part = self.rows[rows]
        return part @ self.right.to(part)


@dataclass(frozen=True, eq=False)
class Weights:
    """What the hidden weights look like: w ~ N(μ, s² C).

    Attributes:
        scale: s.
        root: C^{1/2}, shape [d, d]; None if C is the identity within its error.
        mean: C^{-1/2} μ, shape [d]; None if μ is zero within its error.
        notes: sentences on what does not fit.
    """

    scale: float
    root: Tensor | None = None
    mean: Tensor | None = None
    notes: tuple[str, ...] = ()

    def whitened(self, view: TwoLayerView) -> TwoLayerView:
        """Return the view in coordinates where the weights are isotropic.

        w·x = (C^{-1/2} w)·(C^{1/2} x), so a gradient row G turns into C^{1/2} G.
        """
        if self.root is None:
            return view
        inverse = torch.linalg.inv(self.root)
        hidden = view.hidden_gradient
        return replace(
            view,
            weight=WhitenedRows(view.weight, inverse),
            hidden_gradient=None if hidden is None else WhitenedRows(hidden, self.root),
        )

    def centred(self, view: TwoLayerView) -> TwoLayerView:
        """Return a whitened view whose weights have mean 0, for moments only.

        Stein's lemma asks for Hermite tensors of w − μ; the network still sees w.
        """
        if self.mean is None:
            return view
        return replace(view, weight=CentredRows(view.weight, self.mean))

    def natural(self, inputs: Tensor) -> Tensor:
        """Return inputs in the coordinates of the network, shape [B, d]."""
        if self.root is None:
            return inputs
        return torch.linalg.solve(self.root, inputs.T).T


def inspect_weights(view: TwoLayerView) -> Weights:
    """Test the hidden weights for their mean, covariance and kurtosis.

    The largest eigenvalue of a sample covariance of n isotropic Gaussian rows is near
    (1 + √(d/n))² (Marchenko and Pastur); the excess kurtosis of n d numbers has the
    standard error √(24/(n d)).
    """
    sample = _sampled(view)
    count, dimension = sample.shape
    gram = sample.T @ sample / count if count > 4 * dimension else None
    mean, notes = None, []
    if mean_significance(sample, gram) < _CHANCE:
        mean, shift = _mean(view), sample.mean(dim=0)
        sample = sample - shift
        gram = None if gram is None else gram - torch.outer(shift, shift)
    variance = float(sample.square().mean())
    scale = math.sqrt(variance)
    if scale == 0:
        return Weights(1.0, notes=("All neurons have the same hidden weights.",))
    root = None
    if gram is not None and _uneven(gram / variance, count):
        covariance = _covariance(view, mean)
        scale = math.sqrt(float(covariance.diagonal().mean()))
        values, vectors = torch.linalg.eigh(covariance / scale**2)
        values = values.clamp_min(1e-6 * float(values[-1]))
        root = (vectors * values.sqrt()) @ vectors.T
        notes.append(
            "The hidden weights are correlated or of unequal variance; they were "
            "whitened by their own covariance."
        )
        sample = sample @ torch.linalg.inv(root)
        variance = float(sample.square().mean())
    kurtosis = float(sample.square().square().mean()) / variance**2 - 3
    if abs(kurtosis) > _SIGNIFICANT * math.sqrt(24 / sample.numel()):
        notes.append(
            f"The hidden weights are not Gaussian (excess kurtosis {kurtosis:.2f}); "
            f"the guarantee does not hold, and the result may be unreliable."
        )
    if mean is not None:
        length = float(mean.norm()) / scale
        notes.append(
            f"The hidden weights have a mean (of length {length:.2g} in standard "
            f"deviations); moments were taken about it."
        )
        mean = mean if root is None else torch.linalg.solve(root, mean)
    return Weights(scale, root, mean, tuple(notes))


@formula(
    r"\tfrac{n - d}{d}\, \bar w^\top \hat\Sigma^{-1} \bar w \sim F_{d,\, n - d}",
    reference="Hotelling 1931, for n rows of mean 0 and covariance Σ",
)
def mean_significance(sample: Tensor, gram: Tensor | None = None) -> float:
    """Return the chance of so large a mean if rows had none.

    Args:
        sample: rows w, shape [n, d].
        gram: (1/n) Σ w wᵀ, shape [d, d], for n > d; without it the largest coordinate
            alone is tested.
    """
    from scipy.special import fdtrc

    count, dimension = sample.shape
    mean, variance = sample.mean(dim=0), sample.var(dim=0, correction=0)
    if not bool(mean.any()):
        return 1.0
    if bool(((variance == 0) & (mean != 0)).any()):
        return 0.0
    if gram is None:
        squares = torch.where(variance > 0, mean.square() / variance, 0.0)
        largest = math.sqrt(count * float(squares.max()) / 2)
        return min(1.0, dimension * math.erfc(largest))
    covariance = gram - torch.outer(mean, mean)
    ridge = _RIDGE * variance.mean() * torch.eye(dimension).to(covariance)
    size = float(mean @ torch.linalg.solve(covariance + ridge, mean))
    return float(fdtrc(dimension, count - dimension, size * (count / dimension - 1)))


def _sampled(view: TwoLayerView) -> Tensor:
    """Return rows from all parts of the network, enough to see a covariance."""
    wanted = max(_SAMPLED, 8 * view.dimension)
    if view.width <= wanted:
        return view.weight[slice(0, view.width)].double()
    size, gap = wanted // _PLACES, view.width // _PLACES
    starts = range(0, _PLACES * gap, gap)
    return torch.cat([view.weight[slice(s, s + size)].double() for s in starts])


def _uneven(covariance: Tensor, count: int) -> bool:
    """Say whether eigenvalues lie outside of what isotropic rows would give."""
    values = torch.linalg.eigvalsh(covariance)
    ratio = math.sqrt(len(values) / count)
    low, high = (1 - ratio) ** 2, (1 + ratio) ** 2
    slack = 1 + _SIGNIFICANT * count ** (-2 / 3)
    return float(values[-1]) > slack * high or slack * float(values[0]) < low


def _mean(view: TwoLayerView) -> Tensor:
    """Return (1/m) Σ_j w_j, in one pass over all rows."""
    ones = torch.ones(view.width, 1)
    return view.transposed(view.weight, ones).squeeze(1) / view.width


def _covariance(view: TwoLayerView, mean: Tensor | None) -> Tensor:
    """Return (1/m) Wᵀ W − μ μᵀ, in one pass over all rows."""
    total = torch.zeros(view.dimension, view.dimension, dtype=torch.float64)
    for block in view.chunks():
        part = view.weight[block]
        if mean is not None:
            part = part - mean.to(part)
        total += (part.T @ part).double().cpu()
    return total / view.width
