"""What a relaxation is: x = g(z), from the variable of an attack to examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from exhume.problem.event import EventSpec
from exhume.problem.task import Task

__all__ = ["Relaxation", "Units"]


@dataclass(frozen=True, eq=False)
class Units:
    """An affine change of units x = centre + scale · z; by default the data's own.

    Attributes:
        centre: broadcastable over [B, *event]; None for 0.
        scale: likewise, positive; None for 1.
    """

    centre: Tensor | None = None
    scale: Tensor | None = None

    @classmethod
    def standard(cls, task: Task, spec: EventSpec) -> Self:
        """Return the units in which data are centred and have a spread of about one.

        These are the units in which papers run: the model's own normalisation where it
        has one; else the centre and a quarter of the range (for images in [0, 1] mean ½
        and standard deviation ¼, close to natural images); else the data's own.
        """
        like = next(iter(task.parameters().values())).detach()
        shape = (1, -1) + (1,) * (len(spec.shape) - 1)
        if task.normalise is not None:
            mean, std = task.normalise.mean, task.normalise.std
            return cls(
                like.new_tensor(mean).reshape(shape),
                like.new_tensor(std).reshape(shape),
            )
        if spec.low is None or spec.high is None:
            return cls()
        return cls(
            like.new_tensor((spec.low + spec.high) / 2),
            like.new_tensor((spec.high - spec.low) / 4),
        )

    def to_data(self, z: Tensor) -> Tensor:
        """Return x in the units of the data."""
        x = z if self.scale is None else self.scale * z
        return x if self.centre is None else self.centre + x

    def from_data(self, x: Tensor) -> Tensor:
        """Return z, in these units."""
        z = x if self.centre is None else x - self.centre
        return z if self.scale is None else z / self.scale


class Relaxation(ABC):
    """x = g(z): an attack varies z, in which it may be free, and x is what it means.

    Every engine takes every relaxation. Examples are decoded one by one: row i of x
    depends on row i of z alone.

    Attributes:
        onto: every example (inside of the range) is g(z) for some z. Random starts are
            then drawn as examples and encoded; otherwise :meth:`draw` gives them.
    """

    onto: ClassVar[bool] = False

    @property
    @abstractmethod
    def size(self) -> int:
        """The number k of reals in the variable of one example."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return x = g(z), shape [B, *event], in natural units.

        It is computed by operations of PyTorch that have derivatives of second order
        and in forward mode, in the precision and on the device of z.

        Args:
            z: shape [B, k].
        """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return a z with g(z) = x, as nearly as there is one, shape [B, k].

        Args:
            x: shape [B, *event], in natural units.
        """

    def project(self, z: Tensor) -> Tensor:
        """Return the nearest feasible z; all are, unless this is overridden.

        First-order engines apply it after every step. Second-order engines take the
        feasible set for a box: coordinates that a small step would push out of it are
        held.
        """
        return z

    def draw(self, random: torch.Generator, count: int) -> Tensor:
        """Draw feasible variables, N(0, I) unless this is overridden.

        Args:
            random: source of randomness, on the CPU.
            count: B.

        Returns:
            float64, shape [B, k].
        """
        shape = (count, self.size)
        return self.project(torch.randn(shape, generator=random, dtype=torch.float64))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let an option of an attack be an object of this class."""
        from pydantic_core import core_schema

        del source, handler
        return core_schema.is_instance_schema(cls)
