"""Activations by name, as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from exhume.formula import formula

__all__ = ["ACTIVATIONS", "ActivationName", "QuadraticCubic", "quadratic_cubic"]

ActivationName = Literal[
    "elu", "gelu", "quadratic-cubic", "relu", "sigmoid", "silu", "softplus", "tanh"
]


@formula(
    r"\sigma(z) = z^2 + z^3",
    reference="Wang, Lee and Lei (AISTATS 2023), the activation of its experiments",
)
def quadratic_cubic(z: Tensor) -> Tensor:
    """Apply σ(z) = z² + z³, which has Hermite moments of the orders 2 and 3.

    Args:
        z: any shape.
    """
    return z * z * (1 + z)


class QuadraticCubic(nn.Module):
    """The activation σ(z) = z² + z³."""

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        return quadratic_cubic(z)


#: name → maker of the module
ACTIVATIONS: dict[ActivationName, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "quadratic-cubic": QuadraticCubic,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
