"""The private signal S = (x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.problem.event import EventSpec

__all__ = ["Batch", "checked_batch"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of examples S = (x, y) in natural units (images in [0, 1], say).

    Attributes:
        inputs: x, shape [B, *spec.shape], floating point, finite, within the range;
            examples of unequal size are padded to the batch's largest.
        targets: y, shape [B] int64 (class indices), or float of shape [B, ...].
        spec: shape, kind and range of one example.

    Raises:
        InvalidInput: shapes, types or values contradict ``spec``.
    """

    inputs: Tensor
    targets: Tensor
    spec: EventSpec

    def __post_init__(self) -> None:
        self.spec.check(self.inputs)
        if self.targets.shape[:1] != self.inputs.shape[:1]:
            msg = (
                f"there are {len(self.inputs)} inputs but targets have shape "
                f"{list(self.targets.shape)}; the first axis must agree"
            )
            raise InvalidInput(msg)
        if not (self.targets.is_floating_point() or self.targets.dtype == torch.int64):
            msg = f"targets have type {self.targets.dtype}; expected int64 or float"
            raise InvalidInput(msg)
        if not bool(torch.isfinite(self.targets).all()):
            msg = "targets contain NaN or infinity; clean the data first"
            raise InvalidInput(msg)

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: Sequence[int] | Tensor) -> Batch:
        """Return the batch of the chosen examples, in the given order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Batch(self.inputs[index], self.targets[index], self.spec)

    def mean(self) -> Tensor:
        """Return the mean example, shape [*event], float64; padding is left out."""
        inputs, mask = self.inputs.double(), self.spec.mask(self.inputs)
        if mask is None:
            return inputs.mean(dim=0)
        return (inputs * mask).sum(dim=0) / mask.sum(dim=0).clamp_min(1)

    def found_in(self, other: Batch) -> Tensor:
        """Say which examples are also in another batch, value for value.

        Returns:
            shape [B], bool.
        """
        # Compared one by one: distances computed as ‖a‖² + ‖b‖² − 2ab miss copies.
        mine, others = self.inputs.flatten(1).double(), other.inputs.double()
        found = torch.zeros(len(self), dtype=torch.bool, device=mine.device)
        for row in others.flatten(1).to(mine.device):
            found |= (mine == row).all(dim=1)
        return found

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the batch with inputs (and float targets) in another precision."""
        targets = self.targets
        if targets.is_floating_point():
            targets = targets.to(dtype)
        return Batch(self.inputs.to(dtype), targets, self.spec)


def checked_batch(
    inputs: np.ndarray, targets: np.ndarray, spec: EventSpec, source: str
) -> Batch:
    """Make a batch of float32 inputs, naming the source if the data are unsound.

    Args:
        inputs: shape [N, *event]; uint8 is divided by 255.
        targets: shape [N, ...]; integers become int64, real numbers float32.
        spec: kind, shape and range of an example.
        source: path, for the message.
    """
    x = torch.from_numpy(np.ascontiguousarray(inputs))
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    y = torch.from_numpy(np.ascontiguousarray(targets))
    y = y.float() if y.is_floating_point() else y.long()
    try:
        return Batch(x, y, spec)
    except InvalidInput as error:
        msg = f"{source}: {error}"
        raise InvalidInput(msg) from error
