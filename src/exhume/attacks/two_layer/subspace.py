"""The span of the inputs: from the rows of the hidden gradient, or from moments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exhume.attacks.two_layer.checks import Weights
from exhume.attacks.two_layer.moments import channel_weights
from exhume.attacks.two_layer.view import Rows, TwoLayerView
from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import generator

__all__ = [
    "Subspace",
    "SubspaceKind",
    "channels",
    "moment_subspace",
    "noise_threshold",
    "row_subspace",
    "subspaces",
]

_MORE = 8  # directions beyond the wanted ones, to see the gap
_EXACT = 1e-3  # a gap this large means that the rest is rounding
_ROUNDING = 1e-5  # of single precision, relative to the largest singular value
SubspaceKind = Literal["auto", "svd", "moments"]

_CLEAR_GAP = 2.0  # singular gap above which moments cannot give a better subspace
_CHANNELS = 4  # output units that are tried, the largest first


@dataclass(frozen=True, eq=False)
class Subspace:
    """An orthonormal basis of the estimated span of a batch.

    Attributes:
        basis: V, shape [d, B].
        values: singular values or |eigenvalues|, descending, more than B if known.
        kind: ``svd`` of the gradient, or ``moments``.
        rows: G V, shape [m, B], where the search for V has made it already.
    """

    basis: Tensor
    values: Tensor
    kind: str
    rows: Tensor | None = None

    @property
    def gap(self) -> float:
        """The B-th value over the next one; infinite if nothing is left."""
        rank = self.basis.shape[1]
        if len(self.values) <= rank or float(self.values[rank]) == 0:
            return math.inf
        return float(self.values[rank - 1] / self.values[rank])

    @property
    def condition(self) -> float:
        """The first value over the B-th: large if inputs are nearly parallel."""
        smallest = float(self.values[self.basis.shape[1] - 1])
        return float(self.values[0]) / smallest if smallest > 0 else math.inf


@formula(
    r"\tau_* = \omega(\beta)\, \mathrm{median}(s),\quad "
    r"\omega(\beta) \approx 0.56 \beta^3 - 0.95 \beta^2 + 1.82 \beta + 1.43",
    reference="Gavish and Donoho 2014, Eq. 5, for a noise level that is not known",
)
def noise_threshold(values: Tensor, rows: int) -> float:
    """Return the singular value below which a matrix [rows, d] is noise.

    Args:
        values: all d singular values.
        rows: m; where it is below d, the last d − m values are zero.
    """
    fewer = min(len(values), rows)
    ratio = fewer / max(len(values), rows)
    omega = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    middle = float(values.sort(descending=True).values[:fewer].median())
    return max(omega * middle, _ROUNDING * float(values.max()))


@formula(
    r"\partial L / \partial W = \textstyle\sum_i (\ldots)_i\, x_i^\top \;\Rightarrow\; "
    r"\mathrm{rows} \subset \mathrm{span}\{x_i\}",
    reference="chain rule; Halko, Martinsson and Tropp 2011 for the range",
)
def row_subspace(view: TwoLayerView, batch_size: int | None, key: int) -> Subspace:
    """Return the leading right singular vectors of the hidden gradient.

    They span the inputs exactly if nothing was added. A random sketch finds them in
    two passes; where its gap says that there is noise, all singular values are taken.

    Args:
        view: with a hidden gradient.
        batch_size: B; None counts the singular values above the noise.
        key: randomness of the sketch.
    """
    rows = view.hidden_gradient
    assert rows is not None
    wanted = min(view.dimension, (batch_size or 24) + _MORE)
    omega = torch.randn(
        (view.width, wanted), generator=generator(key, "sketch"), dtype=torch.float32
    )
    range_basis = torch.linalg.qr(view.transposed(rows, omega)).Q
    inside = view.times(rows, range_basis)
    _, values, right = torch.linalg.svd(inside, full_matrices=False)
    rank = batch_size or _numerical_rank(values)
    # Without a known B, noise shows in that no singular value is small.
    uncounted = batch_size is None and rank == len(values) > 1
    if uncounted or (
        rank < len(values) and float(values[rank]) > _EXACT * float(values[rank - 1])
    ):
        return _all_singular(view, rows, batch_size)
    turn = right[:rank].T
    return Subspace(range_basis @ turn, values, "svd", inside @ turn)


def _numerical_rank(values: Tensor) -> int:
    above = values > 10 * _ROUNDING * float(values[0])
    return max(1, int(above.sum()))


def _all_singular(view: TwoLayerView, rows: Rows, batch_size: int | None) -> Subspace:
    gram = torch.zeros(view.dimension, view.dimension, dtype=torch.float64)
    for block in view.chunks():
        part = rows[block].double().cpu()
        gram += part.T @ part
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp_min(0).sqrt().flip(0)
    rank = batch_size
    if rank is None:
        rank = max(1, int((values > noise_threshold(values, view.width)).sum()))
    return Subspace(vectors.flip(1)[:, :rank], values, "svd")


def moment_subspace(
    view: TwoLayerView,
    weights: Tensor,
    batch_size: int,
    *,
    source: str,
    scale: float,
) -> Subspace:
    """Return the leading eigenvectors of the second moment P, by size.

    Where c₂ = 0 the third moment, contracted with the first, takes its place.

    Args:
        view: the gradient.
        weights: of the neurons, shape [m]: g_j for the source ``output``, ω_j that
            multiplies G_j for ``hidden``.
        batch_size: B.
        source: ``hidden`` or ``output``.
        scale: standard deviation of the hidden weights.
    """
    sums = _Sums.over(view, weights, source, scale)
    even = abs(view.sigma.moment(2)) > 1e-6
    moment = sums.second() if even else sums.third_along_first()
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    order = values.abs().argsort(descending=True)
    return Subspace(vectors[:, order[:batch_size]], values.abs()[order], "moments")


@dataclass(frozen=True, eq=False)
class _Sums:
    """Averages over neurons in the full dimension; a second pass for order 3."""

    view: TwoLayerView
    weights: Tensor
    source: str
    scale: float
    first: Tensor

    @classmethod
    def over(
        cls, view: TwoLayerView, weights: Tensor, source: str, scale: float
    ) -> _Sums:
        rows = view.weight if source == "output" else view.hidden_gradient
        assert rows is not None
        unit = 1 / scale if source == "output" else 1.0
        total = view.transposed(rows, weights.unsqueeze(1)).squeeze(1)
        return cls(view, weights, source, scale, unit * total / view.width)

    def second(self) -> Tensor:
        """Return P, see ``moments.second_moment`` and ``second_from_hidden``."""
        moment = self._weighted(self.weights, self.source)
        if self.source == "output":
            moment -= self.weights.mean() * torch.eye(len(moment)).to(moment)
        return moment

    def third_along_first(self) -> Tensor:
        """Return T(I, I, a) for a the direction of the first moment.

        It has parts along every input, which a random direction hardly has.
        """
        a = self.first / self.first.norm()
        along = self.view.times(self.view.weight, a.unsqueeze(1)).squeeze(1)
        along = along / self.scale
        if self.source == "output":
            moment = self._weighted(self.weights * along, "output")
            identity = torch.eye(len(a)).to(moment)
            moment -= (self.weights * along).mean() * identity
            cross = torch.outer(self.first, a)
            return moment - cross - cross.T
        rows = self.view.hidden_gradient
        assert rows is not None
        one = self._weighted(self.weights * along, "hidden")
        one -= torch.outer(self.first, a)
        size = self.weights * self.view.times(rows, a.unsqueeze(1)).squeeze(1)
        two = self._weighted(size, "output")
        two -= size.mean() * torch.eye(len(a)).to(two)
        return (one + one.T + two) / 3

    def _weighted(self, weights: Tensor, left: str) -> Tensor:
        """Return (1/m) Σ_j ω_j L_jᵀ w_j/s, L the weights or the gradient, d × d."""
        view = self.view
        other = view.weight if left == "output" else view.hidden_gradient
        assert other is not None
        total = torch.zeros(view.dimension, view.dimension, dtype=torch.float64)
        for block in view.chunks():
            own = view.weight[block]
            lefts = own if left == "output" else other[block]
            weighted = lefts * weights[block, None].to(lefts)
            total += (weighted.T @ own.to(lefts)).double().cpu()
        power = 2 if left == "output" else 1
        return total / (view.width * self.scale**power)


def subspaces(
    view: TwoLayerView,
    batch_size: int | None,
    source: str,
    wanted: SubspaceKind,
    weights: Weights,
    key: int,
) -> Iterator[Subspace]:
    """Yield the spans to try: of rows, of moments, or both where rows are not clear.

    Args:
        view: the gradient, whitened.
        batch_size: B; None counts what stands out of the noise.
        source: ``hidden`` or ``output``, the gradient that is averaged.
        wanted: ``svd``, ``moments`` or ``auto``.
        weights: what the hidden weights look like.
        key: randomness of sketches.

    Raises:
        InvalidInput: the gradient does not have what is wanted, or B is missing.
    """
    if wanted not in ("auto", "svd", "moments"):
        msg = f"subspace is {wanted!r}; choose 'auto', 'svd' or 'moments'"
        raise InvalidInput(msg)
    first = None
    if view.hidden_gradient is not None and wanted != "moments":
        first = row_subspace(view, batch_size, key)
        if not float(first.values[0]) > 0:
            msg = (
                "the gradient of the hidden weights is zero (equal rows of the output "
                "layer make it vanish, for softmax residuals sum to 0); use "
                "source='output'"
            )
            raise InvalidInput(msg)
        yield first
        batch_size = first.basis.shape[1]
    elif wanted == "svd":
        msg = "subspace='svd' needs the gradient of the hidden weights; use 'moments'"
        raise InvalidInput(msg)
    if batch_size is None:
        msg = "without the hidden gradient the batch size must be given"
        raise InvalidInput(msg)
    if first is None or (wanted == "auto" and first.gap < _CLEAR_GAP):
        for channel in channels(view, source):
            gradient = view.output_gradient
            shown = None if gradient is None else gradient[channel]
            yield moment_subspace(
                weights.centred(view),
                channel_weights(view.output[channel], shown, source),
                batch_size,
                source=source,
                scale=weights.scale,
            )


def channels(view: TwoLayerView, source: str) -> list[int]:
    """Return the output units with the largest gradient, a few.

    Args:
        view: the gradient.
        source: ``hidden`` or ``output``, the gradient that is averaged.
    """
    gradient = view.output_gradient
    size = torch.ones(len(view.output), dtype=torch.float64)
    if gradient is not None:
        size = gradient.double().square().sum(dim=1).cpu()
    # Nothing of a unit passes to the hidden gradient where its weights are zero.
    passing = (view.output != 0).any(dim=1).cpu() if source == "hidden" else size > 0
    order = size.argsort(descending=True, stable=True)
    return order[passing[order]][:_CHANNELS].tolist()
