"""The gradient of a two-layer network, as rows that are read in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exhume.attacks.two_layer.activation import Activation, activation
from exhume.errors import Inconsistent, InvalidInput

__all__ = ["Rows", "TwoLayerView", "blind"]

_CHUNK_BYTES = 2**25


class Rows(Protocol):
    """A matrix that may be larger than memory: a tensor, or a file read by slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (m, d)."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return a block of rows."""
        ...


@dataclass(frozen=True, eq=False)
class TwoLayerView:
    """f_c(x) = Σ_j A_cj σ(w_j·x + b_j) and the gradient of its loss, neuron by neuron.

    With residuals r_ic = ∂L/∂f_c(x_i), and b = 0:
    ∂L/∂w_j = Σ_i (Σ_c A_cj r_ic) σ'(w_j·x_i) x_i and ∂L/∂A_cj = Σ_i r_ic σ(w_j·x_i).

    Attributes:
        weight: W, shape [m, d].
        output: A, shape [K, m].
        activation: name of σ.
        hidden_gradient: ∂L/∂W as released, shape [m, d]; None if it is not.
        output_gradient: ∂L/∂A as released, shape [K, m]; None if it is not.
        offset: b, known hidden biases that are no column of W, shape [m]; None for
            zeros.

    Raises:
        Inconsistent: the shapes do not fit each other.
        InvalidInput: no gradient is given, the activation is not known, or no method
            can work with it.
    """

    weight: Rows
    output: Tensor
    activation: str
    hidden_gradient: Rows | None = None
    output_gradient: Tensor | None = None
    offset: Tensor | None = None

    def __post_init__(self) -> None:
        activation(self.activation)
        if self.hidden_gradient is None and self.output_gradient is None:
            msg = "a two-layer view needs the gradient of the hidden or output weights"
            raise InvalidInput(msg)
        expected = {
            "output weights": (self.output, (self.output.shape[0], self.width)),
            "hidden gradient": (self.hidden_gradient, tuple(self.weight.shape)),
            "output gradient": (self.output_gradient, tuple(self.output.shape)),
            "offsets": (self.offset, (self.width,)),
        }
        for what, (given, shape) in expected.items():
            if given is not None and tuple(given.shape) != shape:
                msg = (
                    f"the {what} of a two-layer view have shape {list(given.shape)}; "
                    f"expected {list(shape)}"
                )
                raise Inconsistent(msg)

    @property
    def width(self) -> int:
        """m, the number of hidden units."""
        return self.weight.shape[0]

    @property
    def dimension(self) -> int:
        """d, the number of features that enter."""
        return self.weight.shape[1]

    @property
    def sigma(self) -> Activation:
        """σ."""
        return activation(self.activation)

    def chunks(self) -> Iterator[slice]:
        """Yield blocks of neurons that fit into a cache of a few tens of megabytes."""
        size = max(1, _CHUNK_BYTES // (4 * self.dimension))
        for start in range(0, self.width, size):
            yield slice(start, min(start + size, self.width))

    def times(self, rows: Rows, right: Tensor) -> Tensor:
        """Return M R for a matrix of neurons M [m, d] and R [d, k], in float64.

        Products are taken in the precision of the rows; one pass over them.
        """
        result = torch.empty(self.width, right.shape[1], dtype=torch.float64)
        for block in self.chunks():
            part = rows[block]
            result[block] = (part @ right.to(part)).double()
        return result

    def transposed(self, rows: Rows, left: Tensor) -> Tensor:
        """Return Mᵀ L, shape [d, k], for L [m, k]; sums over blocks in float64."""
        result = torch.zeros(self.dimension, left.shape[1], dtype=torch.float64)
        for block in self.chunks():
            part = rows[block]
            result += (part.T @ left[block].to(part)).double().cpu()
        return result


def blind(heads: Tensor) -> bool:
    """Say whether some residuals do not show in the hidden gradient: A has rank < K.

    Args:
        heads: A, shape [m, K].
    """
    heads = heads.double()
    return int(torch.linalg.matrix_rank(heads.T @ heads)) < heads.shape[1]
