"""Maps from the variable that is optimised to data: units, box and projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exhume.formula import formula
from exhume.problem.event import EventSpec
from exhume.problem.task import Task

__all__ = [
    "Box",
    "Identity",
    "Parametrisation",
    "ParametrisationName",
    "Projection",
    "Units",
    "logistic_box",
    "make_parametrisation",
    "standard_units",
]

ParametrisationName = Literal["identity", "projection", "box"]

# A value at the very edge of a box has no finite preimage; this share is kept inside.
_EDGE = 1e-4


@dataclass(frozen=True, eq=False)
class Units:
    """An affine change of units x = centre + scale · z.

    Attributes:
        centre: broadcastable over [B, *event].
        scale: likewise, positive.
    """

    centre: Tensor
    scale: Tensor

    def to_data(self, z: Tensor) -> Tensor:
        """Return x in the units of the data."""
        return self.centre + self.scale * z

    def from_data(self, x: Tensor) -> Tensor:
        """Return z, in these units."""
        return (x - self.centre) / self.scale


def standard_units(task: Task, spec: EventSpec) -> Units:
    """Return the units in which data are centred and have a spread of about one.

    These are the units in which papers run: the model's own normalisation where it has
    one; else the centre and a quarter of the range (for images in [0, 1] mean ½ and
    standard deviation ¼, close to natural images); else the data's own.
    """
    like = next(iter(task.parameters().values())).detach()
    shape = (1, -1) + (1,) * (len(spec.shape) - 1)
    if task.normalise is not None:
        mean, std = task.normalise.mean, task.normalise.std
        return Units(
            like.new_tensor(mean).reshape(shape), like.new_tensor(std).reshape(shape)
        )
    if spec.low is None or spec.high is None:
        return Units(like.new_zeros(()), like.new_ones(()))
    return Units(
        like.new_tensor((spec.low + spec.high) / 2),
        like.new_tensor((spec.high - spec.low) / 4),
    )


class Parametrisation(ABC):
    """x = g(z): an unconstrained variable z stands for inputs x."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return inputs x, differentiable."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return a z with g(z) = x, as nearly as there is one."""

    def project(self, z: Tensor) -> Tensor:
        """Return the nearest admissible z, applied after every step."""
        return z


@dataclass(frozen=True, eq=False)
class Identity(Parametrisation):
    """No constraint: z is x in some units.

    Attributes:
        units: of z.
    """

    units: Units

    def decode(self, z: Tensor) -> Tensor:
        """Return x = centre + scale · z."""
        return self.units.to_data(z)

    def encode(self, x: Tensor) -> Tensor:
        """Return z = (x − centre) / scale."""
        return self.units.from_data(x)


@dataclass(frozen=True, eq=False)
class Projection(Parametrisation):
    """z is x in some units, clamped to the range after every step.

    Attributes:
        units: of z.
        spec: with a range.
    """

    units: Units
    spec: EventSpec

    def decode(self, z: Tensor) -> Tensor:
        """Return x = centre + scale · z."""
        return self.units.to_data(z)

    def encode(self, x: Tensor) -> Tensor:
        """Return z = (x − centre) / scale."""
        return self.units.from_data(x)

    def project(self, z: Tensor) -> Tensor:
        """Clamp z to the range of an example."""
        low, high = z.new_tensor(self.spec.low), z.new_tensor(self.spec.high)
        return z.clamp(self.units.from_data(low), self.units.from_data(high))


@formula(
    r"x = \ell + (h - \ell)\, \sigma(z),\quad \sigma(z) = 1 / (1 + e^{-z})",
    reference="change of variables (logistic)",
)
def logistic_box(z: Tensor, low: float, high: float) -> Tensor:
    """Map the real line onto an open interval.

    Args:
        z: any shape.
        low: ℓ, lower end.
        high: h > ℓ, upper end.
    """
    return low + (high - low) * torch.sigmoid(z)


@dataclass(frozen=True, eq=False)
class Box(Parametrisation):
    """x = logistic(z) stays within the range by construction.

    Attributes:
        low: lower end of the range.
        high: upper end.
    """

    low: float
    high: float

    def decode(self, z: Tensor) -> Tensor:
        """Return x = low + (high − low) σ(z)."""
        return logistic_box(z, self.low, self.high)

    def encode(self, x: Tensor) -> Tensor:
        """Return the logit of x; values at the edge move a ten-thousandth inside."""
        share = (x - self.low) / (self.high - self.low)
        return torch.logit(share.clamp(_EDGE, 1 - _EDGE))


def make_parametrisation(
    name: ParametrisationName, spec: EventSpec, units: Units
) -> Parametrisation:
    """Return a parametrisation; the identity where an example has no range.

    Args:
        name: ``identity``, ``projection`` (clamp after each step) or ``box``.
        spec: range of an example.
        units: of z, for the first two.
    """
    if name == "identity" or spec.low is None or spec.high is None:
        return Identity(units)
    if name == "box":
        return Box(spec.low, spec.high)
    return Projection(units, spec)
