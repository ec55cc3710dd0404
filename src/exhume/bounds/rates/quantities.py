"""What the rates depend on: sizes of batch, input and network, noise, clip, mask."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from exhume.errors import InvalidInput

__all__ = ["SYMBOLS", "Quantities"]

#: symbol in the table of rates → field of :class:`Quantities`; 1-rho is what stays
SYMBOLS = {
    "B": "batch_size",
    "d": "dimension",
    "m": "width",
    "sigma": "noise",
    "C": "clip",
    "|G|": "gradient_norm",
    "1-rho": "kept",
    "K": "count",
}


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """The numbers that enter the rates of a two-layer network with a_j = 1/m.

    Noise, clip and norm are in natural units, in which ∂L/∂a is Σᵢ rᵢ σ(W xᵢ) and the
    hidden gradient is m ∂L/∂W, each of order 1 per coordinate.

    Attributes:
        width: m > 0, neurons of the hidden layer.
        dimension: d > 0, numbers of one input.
        batch_size: B > 0.
        noise: σ > 0, standard deviation of the noise on the release.
        clip: C > 0, largest norm; infinity clips nothing.
        gradient_norm: ‖G‖ > 0, norm of the gradient before clipping.
        kept: 1 − ρ in (0, 1], what dropout or pruning leaves.
        count: K > 0, local steps or clients.

    Raises:
        InvalidInput: a number is not positive, or ``kept`` exceeds 1.
    """

    width: float
    dimension: float
    batch_size: float = 1
    noise: float = 1
    clip: float = math.inf
    gradient_norm: float = 1
    kept: float = 1
    count: float = 1

    def __post_init__(self) -> None:
        for name in SYMBOLS.values():
            value = getattr(self, name)
            if not value > 0 or (name == "kept" and value > 1):
                span = "(0, 1]" if name == "kept" else "above 0"
                msg = f"{name} is {value}; the rates need a number {span}"
                raise InvalidInput(msg)

    def at(self, symbol: str, value: float) -> Quantities:
        """Return the same with one quantity changed.

        Args:
            symbol: a key of :data:`SYMBOLS`.
            value: the new number.

        Raises:
            InvalidInput: no quantity has the symbol.
        """
        return replace(self, **{_field(symbol): value})

    def value(self, symbol: str) -> float:
        """Return one quantity by its symbol."""
        return float(getattr(self, _field(symbol)))


def _field(symbol: str) -> str:
    if symbol not in SYMBOLS:
        msg = f"no quantity is called {symbol!r}; known: {', '.join(SYMBOLS)}"
        raise InvalidInput(msg)
    return SYMBOLS[symbol]
