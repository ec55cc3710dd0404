"""Activations as functions of one number: values, slopes and Hermite moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "Activation",
    "activation",
    "hermite_moment",
    "recognised",
]

#: norms of inputs, over 1 / s, between which activations are told from polynomials
NORMS = (10**-1.3, 10**1.3)

# Hermite moments below this share of the largest are zero up to quadrature.
_ZERO = 1e-6
_TAIL = 12.0  # standard deviations up to which the Gaussian weight is integrated


@dataclass(frozen=True)
class Activation:
    """σ and what the moments need to know of it.

    Attributes:
        name: of the activation.
        value: σ, elementwise.
        odd: σ is odd up to a constant, so that (x, r) and (−x, −r) give the same
            gradient of the hidden weights.
        homogeneous: σ' does not depend on the length of its argument, so that this
            gradient shows r‖x‖ only.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    odd: bool = False
    homogeneous: bool = False

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z), elementwise."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            return torch.autograd.grad(self.value(point).sum(), point)[0]

    def curvature(self, z: Tensor) -> Tensor:
        """Return σ''(z), elementwise, 0 where σ is piecewise linear."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            value = self.value(point).sum()
            (slope,) = torch.autograd.grad(value, point, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(z)
            (second,) = torch.autograd.grad(slope.sum(), point, allow_unused=True)
        return torch.zeros_like(z) if second is None else second

    def moment(self, order: int, scale: float = 1.0) -> float:
        """Return c_p at a scale, see :func:`hermite_moment`."""
        return _moment(self.name, order, scale)


@formula(
    r"c_p = \mathbb{E}[\sigma(\beta Z)\, He_p(Z)] = \beta^p\, "
    r"\mathbb{E}[\sigma^{(p)}(\beta Z)],\quad Z \sim N(0, 1)",
    reference="Stein's lemma; Wang, Lee and Lei (AISTATS 2023), section 3",
)
def hermite_moment(
    value: Callable[[Tensor], Tensor], order: int, scale: float = 1.0
) -> float:
    """Compute a Hermite moment by adaptive quadrature, split at 0 where σ may kink.

    Args:
        value: σ, elementwise.
        order: p, from 0 to 4.
        scale: β > 0, the norm of the input in units of the weights' deviation.

    Raises:
        InvalidInput: the order is not from 0 to 4.
    """
    from scipy.integrate import quad

    if not 0 <= order <= 4:
        msg = f"the order of a Hermite moment is {order}; expected 0 to 4"
        raise InvalidInput(msg)

    def integrand(z: float) -> float:
        point = torch.tensor(scale * z, dtype=torch.float64)
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return float(value(point)) * _hermite(order, z) * density

    halves = [(-_TAIL, 0.0), (0.0, _TAIL)]
    return sum(quad(integrand, a, b, epsabs=1e-10, limit=200)[0] for a, b in halves)


def _hermite(order: int, z: float) -> float:
    values = [1.0, z, z * z - 1, z**3 - 3 * z, z**4 - 6 * z * z + 3]
    return values[order]


@lru_cache(maxsize=512)
def _moment(name: str, order: int, scale: float) -> float:
    return hermite_moment(ACTIVATIONS[name].value, order, scale)


def _quadratic_cubic(z: Tensor) -> Tensor:
    return z * z * (1 + z)


def _leaky_relu(z: Tensor) -> Tensor:
    return F.leaky_relu(z, 0.01)


ACTIVATIONS: dict[str, Activation] = {
    one.name: one
    for one in (
        Activation("elu", F.elu),
        Activation("gelu", F.gelu),
        Activation("identity", lambda z: z * 1.0, odd=True, homogeneous=True),
        Activation("leaky-relu", _leaky_relu, homogeneous=True),
        Activation("normal-cdf", torch.special.ndtr, odd=True),
        Activation("quadratic", lambda z: z * z),
        Activation("quadratic-cubic", _quadratic_cubic),
        Activation("relu", F.relu, homogeneous=True),
        Activation("selu", F.selu),
        Activation("sigmoid", torch.sigmoid, odd=True),
        Activation("silu", F.silu),
        Activation("sin", torch.sin, odd=True),
        Activation("softplus", F.softplus),
        Activation("tanh", torch.tanh, odd=True),
    )
}


def activation(name: str) -> Activation:
    """Return an activation by name.

    Raises:
        InvalidInput: there is none of this name, or no method can work with it.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        msg = f"the activation is {name!r}; moments are known for {known}"
        raise InvalidInput(msg)
    found = ACTIVATIONS[name]
    if max(abs(found.moment(p)) for p in (3, 4)) < _ZERO:
        seen = "one linear combination" if name == "identity" else "the span"
        msg = (
            f"the activation {name!r} has no moment of order 3 or 4: its gradient "
            f"shows {seen} of the batch and nothing more, so no method can tell the "
            f"examples apart"
        )
        raise InvalidInput(msg)
    return found


def recognised(before: Tensor, after: Tensor) -> tuple[Activation, Tensor] | None:
    """Find the activation that turns one tensor into the other, unit by unit.

    Args:
        before: arguments of N examples, shape [N, m]; they should be of both signs.
        after: values, same shape.

    Returns:
        σ and factors f with after = f_j σ(before) (0 where a unit was dropped, 1 where
        nothing shows it), or None.
    """
    if before.shape != after.shape or before.dim() != 2:
        return None
    # Near 0 many are alike: the nearest one counts.
    nearest, least = None, math.inf
    for one in ACTIVATIONS.values():
        values = one.value(before)
        energy = values.square().sum(dim=0)
        factors = (values * after).sum(dim=0) / energy.clamp_min(1e-30)
        factors = torch.where(energy > 0, factors, torch.ones_like(factors))
        error = float((factors * values - after).norm())
        close = torch.allclose(factors * values, after, rtol=1e-4, atol=1e-6)
        if close and error < least:
            kept = factors.where(factors > 1e-6, torch.zeros_like(factors))
            nearest, least = (one, kept), error
    return nearest
