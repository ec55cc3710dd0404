"""Whether hidden weights are Gaussian enough for Stein's lemma; whitening if not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exhume.attacks.two_layer.view import Rows, TwoLayerView

__all__ = ["Weights", "WhitenedRows", "inspect_weights"]

_SAMPLED = 8192  # rows that are looked at, at least
_PLACES = 16  # where they are taken from
_SIGNIFICANT = 6.0  # standard errors


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
    """What the hidden weights look like: w ~ N(0, s² C).

    Attributes:
        scale: s.
        root: C^{1/2}, shape [d, d]; None if C is the identity within its error.
        notes: sentences on what does not fit.
    """

    scale: float
    root: Tensor | None = None
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

    def natural(self, inputs: Tensor) -> Tensor:
        """Return inputs in the coordinates of the network, shape [B, d]."""
        if self.root is None:
            return inputs
        return torch.linalg.solve(self.root, inputs.T).T


def inspect_weights(view: TwoLayerView) -> Weights:
    """Test the hidden weights for their covariance and kurtosis.

    The largest eigenvalue of a sample covariance of n isotropic Gaussian rows is near
    (1 + √(d/n))² (Marchenko and Pastur); the excess kurtosis of n d numbers has the
    standard error √(24/(n d)).
    """
    sample = _sampled(view)
    count, dimension = sample.shape
    variance = float(sample.square().mean())
    scale = math.sqrt(variance)
    if scale == 0:
        return Weights(1.0, notes=("All hidden weights are zero.",))
    notes = []
    kurtosis = float(sample.square().square().mean()) / variance**2 - 3
    if abs(kurtosis) > _SIGNIFICANT * math.sqrt(24 / sample.numel()):
        notes.append(
            f"The hidden weights are not Gaussian (excess kurtosis {kurtosis:.2f}); "
            f"the guarantee does not hold, and the result may be unreliable."
        )
    root = None
    if count > 4 * dimension and _uneven(sample.T @ sample / (count * variance), count):
        covariance = _covariance(view)
        scale = math.sqrt(float(covariance.diagonal().mean()))
        values, vectors = torch.linalg.eigh(covariance / scale**2)
        values = values.clamp_min(1e-6 * float(values[-1]))
        root = (vectors * values.sqrt()) @ vectors.T
        notes.append(
            "The hidden weights are correlated or of unequal variance; they were "
            "whitened by their own covariance."
        )
    return Weights(scale, root, tuple(notes))


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


def _covariance(view: TwoLayerView) -> Tensor:
    """Return (1/m) Wᵀ W, in one pass over all rows."""
    total = torch.zeros(view.dimension, view.dimension, dtype=torch.float64)
    for block in view.chunks():
        part = view.weight[block]
        total += (part.T @ part).double().cpu()
    return total / view.width
