"""Examples from a NumPy archive (.npz) with arrays of inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np

from exhume.config import later
from exhume.data._files import (
    check_limit,
    evenly_spaced,
    existing,
    read_npz,
)
from exhume.errors import InvalidInput
from exhume.problem.batch import Batch, checked_batch
from exhume.problem.event import EventSpec
from exhume.problem.source import DataSource
from exhume.registry import find

__all__ = ["Npz"]

_CHANNELS: Final = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Npz(DataSource):
    """Plain arrays; pickled objects are refused.

    Inputs of type uint8 are divided by 255; real numbers are taken as they are. Their
    shape decides the kind: [N, d] are vectors, [N, H, W] grey images, [N, C, H, W] or
    [N, H, W, C] images with C = 1 or 3 (if both readings fit, the channels are first).
    Images lie in [0, 1], real vectors are unbounded, unless ``low`` and ``high`` say
    otherwise. Targets are class indices (any integer type) or real numbers.

    Attributes:
        path: the file, relative to the working directory.
        inputs: name of the array of inputs.
        targets: name of the array of targets.
        low: least value of an input, with ``high``.
        high: greatest value of an input, with ``low``.
        limit: keep at most this many examples, evenly spaced.
        event: kind of the examples, where their shape does not tell it: a series, or a
            kind of one's own. Its arrays are [N, *shape].
    """

    path: str
    inputs: str = "inputs"
    targets: str = "targets"
    low: float | None = None
    high: float | None = None
    limit: int | None = None
    event: str | None = later(None)

    licence: ClassVar[str] = "as the file's owner says"

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if self.event is not None:
            find("event", self.event)  # a wrong name is told before anything is read
        if (self.low is None) != (self.high is None):
            msg = "give both ends of the range, low and high, or neither"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls, folder: Path | None = None) -> tuple[Self, ...]:
        """Return five images of 6 × 6 pixels, written to the folder."""
        path = (folder or Path()) / "examples.npz"
        if folder is not None:
            pixels = np.linspace(0, 1, 5 * 6 * 6).reshape(5, 6, 6)
            np.savez(path, inputs=pixels, targets=np.arange(5))
        return (cls(path=str(path)),)

    def load(self) -> Batch:
        """Read the archive."""
        path = existing(self.path, "an .npz file")
        inputs, targets = read_npz(path, (self.inputs, self.targets))
        if targets.shape[:1] != inputs.shape[:1] or len(inputs) == 0:
            msg = (
                f"{path}: {self.inputs!r} has shape {list(inputs.shape)} and "
                f"{self.targets!r} {list(targets.shape)}; the first axes must agree "
                f"and not be empty"
            )
            raise InvalidInput(msg)
        keep = evenly_spaced(len(inputs), self.limit)
        inputs = self._arranged(inputs[keep], path.name)
        targets = _checked_targets(targets[keep], path.name)
        return checked_batch(inputs, targets, self._spec(inputs), str(path))

    def _arranged(self, inputs: np.ndarray, name: str) -> np.ndarray:
        if inputs.dtype != np.uint8 and not np.issubdtype(inputs.dtype, np.floating):
            msg = (
                f"{name}: {self.inputs!r} has type {inputs.dtype}; expected uint8 "
                f"(0 to 255) or real numbers"
            )
            raise InvalidInput(msg)
        kind = None if self.event is None else find("event", self.event)
        if inputs.ndim == 2 or (kind is not None and not kind.plain):
            return inputs
        if inputs.ndim == 3:
            return inputs[:, None]
        if inputs.ndim == 4 and inputs.shape[1] in _CHANNELS:
            return inputs
        if inputs.ndim == 4 and inputs.shape[3] in _CHANNELS:
            return np.moveaxis(inputs, 3, 1)
        msg = (
            f"{name}: {self.inputs!r} has shape {list(inputs.shape)}; expected [N, d], "
            f"[N, H, W], [N, C, H, W] or [N, H, W, C] with 1 or 3 channels"
        )
        raise InvalidInput(msg)

    def _spec(self, inputs: np.ndarray) -> EventSpec:
        shape, ends = inputs.shape[1:], (self.low, self.high)
        if self.event is None:
            spec = EventSpec.of_shape(shape, *ends)
        else:
            spec = EventSpec.of(self.event, shape, *ends)
        usual = (0.0, 1.0) if inputs.dtype == np.uint8 else spec.usual
        if spec.low is None and usual is not None:
            spec = replace(spec, low=usual[0], high=usual[1])
        return spec


def _checked_targets(targets: np.ndarray, name: str) -> np.ndarray:
    whole = np.issubdtype(targets.dtype, np.integer) or targets.dtype == np.bool_
    if not whole and not np.issubdtype(targets.dtype, np.floating):
        msg = f"{name}: targets have type {targets.dtype}; expected numbers"
        raise InvalidInput(msg)
    if whole and (targets.ndim != 1 or targets.min() < 0):
        msg = (
            f"{name}: class targets must be indices 0, 1, … of shape [N]; got shape "
            f"{list(targets.shape)} with least value {targets.min()}"
        )
        raise InvalidInput(msg)
    return targets
