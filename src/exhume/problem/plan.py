"""What calibration fixes before a release: the plan of a defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from exhume.errors import Inconsistent

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What calibration fixes before a release: plain numbers and named tensors.

    Attributes:
        defense: registered name of the defense that made it.
        shapes: name → shape of every tensor that the plan was made for.
        covers: names that the defense touches; the rest is released in clear.
        numbers: scalars, e.g. how many entries are removed.
        arrays: tensors by name, e.g. a mask per parameter.
    """

    defense: str
    shapes: Mapping[str, tuple[int, ...]]
    covers: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def in_clear(self) -> tuple[str, ...]:
        """Names that the defense leaves untouched."""
        return tuple(name for name in self.shapes if name not in self.covers)

    def beside(self, tensors: Mapping[str, Tensor]) -> Plan:
        """Return the plan for updates that also carry other tensors, left in clear.

        Args:
            tensors: what comes along, e.g. the buffers of a model (BatchNorm
                statistics, step counters). The defense never touches them.

        Raises:
            Inconsistent: the plan has a tensor of this name already.
        """
        known = [name for name in tensors if name in self.shapes]
        if known:
            msg = f"the plan of {self.defense!r} has {', '.join(known)} already"
            raise Inconsistent(msg)
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        return replace(self, shapes={**self.shapes, **shapes})
