"""What one run of a mechanism produced: the observation O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from exhume.problem.plan import Plan
from exhume.problem.tree import Tree

__all__ = ["Observation"]


@dataclass(frozen=True, eq=False)
class Observation:
    """What one run of a mechanism produced, on the evaluator's side.

    Only :meth:`ThreatModel.reveal` decides which of it an attacker gets.

    Attributes:
        values: the released tensors O by name.
        batch_statistics: BatchNorm layer → (mean, biased variance) of the client's
            batch; empty without BatchNorm.
        plans: the calibrated plan of every defense, in order.
        key: the randomness that made it.
    """

    values: Tree
    batch_statistics: Mapping[str, tuple[Tensor, Tensor]]
    plans: tuple[Plan, ...]
    key: int
